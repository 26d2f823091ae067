"""One set of weights, two roles: which modules carry the LoRA, and what each role computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mini_model import fill, mini_batch, mini_config
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from anytext2.model import AnyText2, build_model, load_model_config
from distill.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX, portable_name, write_adapter
from distill.student import STUDENT, LoraSection, Roles, add_student, load_student, lora_targets

LORA = LoraSection(rank=3, alpha=6.0)


def filled_model() -> AnyText2:
    model = build_model(mini_config())
    fill(model)  # in float64, every weight drawn: nothing hides behind a zero convolution
    # frozen, as a student's base is: torch computes attention in another order where a weight requires a gradient
    return model.float().eval().requires_grad_(False)


@torch.no_grad()
def prediction(model: AnyText2) -> torch.Tensor:
    """The whole way of a step: conditions, WriteNet, UNet."""
    batch = mini_batch()
    conditions = model.condition(batch, model.masked_latents(batch))
    x = torch.randn(batch.size, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(1))
    return model.predict_noise(x, torch.tensor([0, 499, 999]), conditions.image_context, model.write(conditions))


def lora_parameters(student: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in student.named_parameters() if ".lora_" in name)


@torch.no_grad()
def perturb(student: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for _, parameter in lora_parameters(student):
        parameter.copy_(torch.randn(parameter.shape, generator=generator))


# --- which modules ---


@pytest.fixture(scope="module")
def official() -> AnyText2:
    """The official size, without memory for its weights."""
    return build_model(load_model_config("sd15"), "meta")


def test_the_paper_preset_is_252_modules_in_the_official_size(official: AnyText2) -> None:
    names = lora_targets(official, "paper")
    assert len(names) == len(set(names)) == 252
    zero_convs = [n for n in names if ".zero_convs." in n]
    assert zero_convs == [f"control_model.zero_convs.{i}.0" for i in range(12)]
    by_part = {part: sum(n.startswith(part) for n in names) for part in ("model.diffusion_model.", "control_model.")}
    # 7 WriteNet blocks with two attentions of four projections each; the UNet's 16, of which 6 have attn1x and attn2x
    assert by_part == {"control_model.": 7 * 8 + 12, "model.diffusion_model.": 252 - 7 * 8 - 12}
    attention = [n for n in names if n not in zero_convs]
    assert {n.rsplit(".attn", 1)[1] for n in attention} == {
        f"{kind}.to_{projection}" for kind in ("1", "2", "1x", "2x") for projection in ("q", "k", "v", "out.0")
    }


def test_rank_64_is_504_tensors_with_26_8_million_parameters_in_the_official_size(official: AnyText2) -> None:
    targets = {n: m for n, m in official.named_modules() if n in set(lora_targets(official, "paper"))}
    with torch.device("meta"):
        student = add_student(official, LoraSection(rank=64, alpha=64.0), seed=0)
    tensors = dict(lora_parameters(student))
    assert len(tensors) == 504 and all(p.requires_grad for p in tensors.values())
    assert {n for n, p in student.named_parameters() if p.requires_grad} == set(tensors)
    count = sum(p.numel() for p in tensors.values())
    expected = sum(64 * (m.weight.shape[0] + m.weight.shape[1]) for m in targets.values())
    print(f"LoRA of rank 64: {len(targets)} modules, {len(tensors)} tensors, {count:,} parameters")
    assert count == expected and round(count / 1e6, 1) == 26.8


def test_a_regular_expression_selects_modules(official: AnyText2) -> None:
    names = lora_targets(build_model(mini_config(), "meta"), r"^control_model\.zero_convs\.\d+\.0$")
    assert names and all(n.startswith("control_model.zero_convs.") for n in names)


@pytest.mark.parametrize(("targets", "words"), [("a(", "nor a pattern"), ("nowhere", "matches no module")])
def test_targets_that_select_nothing_are_an_error(targets: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        lora_targets(build_model(mini_config(), "meta"), targets)
    assert "\n" not in str(caught.value) and "paper" in str(caught.value)


# --- roles ---


def test_the_student_starts_as_the_teacher_and_leaves_the_generator_alone() -> None:
    model = filled_model()
    bare = prediction(model)
    torch.manual_seed(5)
    student = add_student(model, LORA, seed=0)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(prediction(Roles(student).model), bare)


def test_the_teacher_stays_the_bare_model_whatever_the_adapter_becomes() -> None:
    model = filled_model()
    bare = prediction(model)
    roles = Roles(add_student(model, LORA, seed=0))
    perturb(roles.wrapped)
    with roles.teacher():
        assert torch.is_inference_mode_enabled()
        assert torch.equal(prediction(roles.model), bare)
    assert not torch.is_inference_mode_enabled()
    changed = prediction(roles.model)
    assert (changed - bare).abs().max() > 1e-2
    with roles.target():
        assert torch.is_inference_mode_enabled()
        assert torch.equal(prediction(roles.model), changed)
    assert torch.equal(prediction(roles.model), changed)
    assert all(p.requires_grad == (".lora_" in n) for n, p in roles.wrapped.named_parameters())


def test_after_an_exception_in_the_teacher_the_student_is_back() -> None:
    roles = Roles(add_student(filled_model(), LORA, seed=0))
    perturb(roles.wrapped)
    before = prediction(roles.model)
    with pytest.raises(RuntimeError), roles.teacher():
        raise RuntimeError
    assert torch.equal(prediction(roles.model), before) and not torch.is_inference_mode_enabled()


def test_without_a_student_the_model_is_its_own_teacher() -> None:
    model = filled_model()
    roles = Roles(model)
    bare = prediction(model)
    with roles.teacher():
        assert roles.model is model and torch.equal(prediction(roles.model), bare)
        assert torch.is_inference_mode_enabled()


def test_the_first_adapter_depends_on_the_seed_alone() -> None:
    def matrices(seed: int) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in lora_parameters(add_student(build_model(mini_config()), LORA, seed))}

    torch.manual_seed(1)
    first, again, other = matrices(7), matrices(7), matrices(8)
    assert all(torch.equal(first[n], again[n]) for n in first)
    for name, value in first.items():
        assert torch.equal(value, other[name]) == (".lora_B." in name)
        assert bool(value.any()) == (".lora_A." in name)


# --- from a folder ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of random numbers for the mini model, as a checkpoint holds it."""
    student = add_student(build_model(mini_config()), LORA, seed=0)
    perturb(student)
    tensors = {portable_name(n, STUDENT): p.detach() for n, p in lora_parameters(student)}
    write_adapter(tmp_path, tensors, student.peft_config[STUDENT])  # type: ignore[arg-type]
    return tmp_path


def load_fault(model: AnyText2, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_student(model, folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message and len(message) < 600
    return message


def test_a_saved_adapter_computes_as_before_and_is_frozen(folder: Path) -> None:
    model = filled_model()
    bare = prediction(model)
    expected = Roles(add_student(filled_model(), LORA, seed=0))
    perturb(expected.wrapped)
    roles = Roles(load_student(model, folder))
    assert isinstance(roles.wrapped, PeftModel) and not any(p.requires_grad for p in roles.wrapped.parameters())
    assert torch.equal(prediction(roles.model), prediction(expected.model))
    with roles.teacher():
        assert torch.equal(prediction(roles.model), bare)


def test_a_folder_without_an_adapter(folder: Path) -> None:
    model = build_model(mini_config())
    assert "no adapter here" in load_fault(model, folder / "nowhere")
    (folder / ADAPTER_CONFIG).unlink()
    assert ADAPTER_CONFIG in load_fault(model, folder)


@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_a_truncated_adapter(folder: Path, keep: float) -> None:
    content = (folder / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(content[: int(len(content) * keep) if 0 < keep < 1 else int(keep)])
    assert f"{ADAPTER_WEIGHTS}: not a whole safetensors file" in load_fault(build_model(mini_config()), folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_adapter_config(folder: Path, text: str) -> None:
    (folder / ADAPTER_CONFIG).write_text(text)
    assert ADAPTER_CONFIG in load_fault(build_model(mini_config()), folder)


def test_an_adapter_of_another_rank_than_it_says(folder: Path) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | {"r": 2}))
    message = load_fault(build_model(mini_config()), folder)
    n = len(load_file(folder / ADAPTER_WEIGHTS))
    assert f"of {n} tensors {n} of another shape (first " in message


def test_an_adapter_with_other_tensors(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    first = next(iter(tensors))
    tensors[f"{PEFT_PREFIX}control_model.nowhere.lora_A.weight"] = tensors.pop(first)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    message = load_fault(build_model(mini_config()), folder)
    assert f"1 missing (first {first.removeprefix(PEFT_PREFIX)})" in message
    assert "1 unexpected (first control_model.nowhere.lora_A.weight)" in message


def test_an_adapter_for_another_model(folder: Path) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    other = [f"unet.{name}" for name in config["target_modules"]]
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | {"target_modules": other}))
    assert "does not fit this model" in load_fault(build_model(mini_config()), folder)
