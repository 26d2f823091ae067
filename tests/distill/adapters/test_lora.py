"""One set of weights, two roles: which modules carry the LoRA, and what each role computes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.adapters.lora import AdapterConfig, add_student, load_student
from distill.adapters.roles import STUDENT, AdapterRoles
from distill.adapters.targets import lora_targets
from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX, portable_name, write_adapter
from tests.helpers.models.mini_model import mini_batch, mini_config, mini_model

LORA = AdapterConfig(rank=3, alpha=6.0)
ADAPTERS = [("lora", "paper"), ("rslora", "all"), ("dora", "all")]


def filled_model() -> AnyText2:
    """Every weight is drawn: nothing hides behind a zero convolution. Frozen, as a student's base is: torch computes
    attention in another order where a weight requires a gradient."""
    return mini_model().float().eval().requires_grad_(False)


@torch.no_grad()
def prediction(model: AnyText2) -> torch.Tensor:
    """The whole way of a step: conditions, WriteNet, UNet."""
    batch = mini_batch()
    conditions = model.encode_conditions(batch, model.masked_latents(batch))
    x = torch.randn(batch.size, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(1))
    return model.predict_noise(x, torch.tensor([0, 499, 999]), conditions.image_context, model.control_maps(conditions))


def lora_parameters(student: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in student.named_parameters() if ".lora_" in name)


@torch.no_grad()
def perturb(student: nn.Module) -> None:
    """Random matrices; DoRA's lengths are changed by up to a half."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in lora_parameters(student):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(parameter * (1 + 0.5 * noise.tanh()) if "magnitude" in name else 0.3 * noise)


# --- which modules ---


@pytest.fixture(scope="module")
def official() -> AnyText2:
    """The official size, without memory for its weights."""
    return build_model(load_model_config("sd15"), "meta")


@pytest.mark.slow
def test_rank_64_is_504_tensors_with_26_8_million_parameters_in_the_official_size(official: AnyText2) -> None:
    targets = {n: m for n, m in official.named_modules() if n in set(lora_targets(official, "paper"))}
    with torch.device("meta"):
        student = add_student(official, AdapterConfig(rank=64, alpha=64.0), seed=0)
    tensors = dict(lora_parameters(student))
    assert len(tensors) == 504 and all(p.requires_grad for p in tensors.values())
    assert {n for n, p in student.named_parameters() if p.requires_grad} == set(tensors)
    count = sum(p.numel() for p in tensors.values())
    expected = sum(64 * (m.weight.shape[0] + m.weight.shape[1]) for m in targets.values())
    print(f"LoRA of rank 64: {len(targets)} modules, {len(tensors)} tensors, {count:,} parameters")
    assert count == expected and round(count / 1e6, 1) == 26.8


# --- kinds ---


@pytest.mark.slow
def test_dora_of_rank_64_adds_a_length_for_each_row_in_the_official_size() -> None:
    official = build_model(load_model_config("sd15"), "meta")
    rows = {n: m.weight.shape[0] for n, m in official.named_modules() if n in set(lora_targets(official, "paper"))}
    with torch.device("meta"):
        student = add_student(official, AdapterConfig(kind="dora"), seed=0)
    lengths = {n: p.numel() for n, p in lora_parameters(student) if ".lora_magnitude_vector." in n}
    assert len(lengths) == 252 and sum(lengths.values()) == sum(rows.values())
    assert sum(p.requires_grad for p in student.parameters()) == 756


def test_dora_refuses_a_channel_of_zeros() -> None:
    model = filled_model()
    with torch.no_grad():
        model.control_model.zero_convs[1][0].weight[3] = 0
        model.control_model.zero_convs[2][0].weight[0] = 1e-9  # nothing in half precision
    with pytest.raises(ValueError, match=r"which 2 of \d+ layers have .first control_model.zero_convs.1.0.") as caught:
        add_student(model, AdapterConfig(kind="dora", rank=2, alpha=2), seed=0)
    assert "\n" not in str(caught.value) and "lora.kind=lora" in str(caught.value)
    add_student(model, AdapterConfig(kind="dora", rank=2, alpha=2, targets="decoder"), seed=0)


@pytest.mark.heavy
def test_the_scale_of_rank_stabilised_lora() -> None:
    """W + alpha / sqrt(rank) B A against W + alpha / rank B A: alpha of one is another alpha of the other."""
    plain = add_student(filled_model(), AdapterConfig(rank=4, alpha=6), seed=0)
    stabilised = add_student(filled_model(), AdapterConfig(kind="rslora", rank=4, alpha=3), seed=0)
    perturb(plain)
    perturb(stabilised)
    assert torch.equal(prediction(AdapterRoles(plain).model), prediction(AdapterRoles(stabilised).model))


# --- roles ---


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "targets"), ADAPTERS)
def test_the_student_starts_as_the_teacher_and_leaves_the_generator_alone(kind: str, targets: str) -> None:
    model = filled_model()
    bare = prediction(model)
    torch.manual_seed(5)
    student = add_student(model, replace(LORA, kind=kind, targets=targets), seed=0)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(prediction(AdapterRoles(student).model), bare)


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "targets"), ADAPTERS)
def test_the_teacher_stays_the_bare_model_whatever_the_adapter_becomes(kind: str, targets: str) -> None:
    model = filled_model()
    bare = prediction(model)
    roles = AdapterRoles(add_student(model, replace(LORA, kind=kind, targets=targets), seed=0))
    perturb(roles.wrapped)
    with roles.teacher() as teacher:
        assert torch.is_inference_mode_enabled()
        assert torch.equal(prediction(teacher), bare)
    assert not torch.is_inference_mode_enabled()
    changed = prediction(roles.model)
    assert (changed - bare).abs().max() > 1e-2
    with roles.target():
        assert torch.is_inference_mode_enabled()
        assert torch.equal(prediction(roles.model), changed)
    assert torch.equal(prediction(roles.model), changed)
    assert all(p.requires_grad == (".lora_" in n) for n, p in roles.wrapped.named_parameters())


@pytest.mark.heavy
def test_after_an_exception_in_the_teacher_the_student_is_back() -> None:
    roles = AdapterRoles(add_student(filled_model(), LORA, seed=0))
    perturb(roles.wrapped)
    before = prediction(roles.model)
    with pytest.raises(RuntimeError), roles.teacher():
        raise RuntimeError
    assert torch.equal(prediction(roles.model), before) and not torch.is_inference_mode_enabled()


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_teacher_has_no_adapters_and_no_weights_of_its_own(kind: str) -> None:
    roles = AdapterRoles(add_student(filled_model(), replace(LORA, kind=kind, targets="all"), seed=0))
    names = set(roles.wrapped.state_dict())
    with roles.teacher() as teacher:
        pass
    assert not any(isinstance(module, BaseTunerLayer) for module in teacher.modules())
    own = {p.data_ptr() for p in roles.wrapped.parameters()}
    shared = dict(teacher.named_parameters())
    assert set(shared) == set(dict(filled_model().named_parameters()))
    assert all(p.data_ptr() in own for p in shared.values())
    roles.wrapped.to(torch.float64)  # what changes the weights in place, or moves them, reaches both
    assert all(
        p.dtype == torch.float64 and p.data_ptr() in {q.data_ptr() for q in roles.wrapped.parameters()}
        for p in teacher.parameters()
    )
    assert teacher.betas is roles.model.betas
    with torch.no_grad():
        teacher.control_model.time_embed[0].weight.fill_(0.5)  # type: ignore[operator, union-attr, index]
    assert bool((roles.model.control_model.time_embed[0].weight == 0.5).all())  # type: ignore[union-attr, index]
    assert set(roles.wrapped.state_dict()) == names


def test_without_a_student_the_model_is_its_own_teacher() -> None:
    model = filled_model()
    roles = AdapterRoles(model)
    bare = prediction(model)
    with roles.teacher() as teacher:
        assert teacher is model and torch.equal(prediction(teacher), bare)
        assert torch.is_inference_mode_enabled()


@pytest.mark.heavy
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


def write_student(folder: Path, section: AdapterConfig = LORA) -> PeftModel:
    """Writes an adapter of random numbers for the mini model, as a checkpoint holds it."""
    student = add_student(filled_model(), section, seed=0)
    perturb(student)
    tensors = {portable_name(n, STUDENT): p.detach() for n, p in lora_parameters(student)}
    write_adapter(folder, tensors, student.peft_config[STUDENT], "mini")  # type: ignore[arg-type]
    return student


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_student(tmp_path)
    return tmp_path


def load_fault(model: AnyText2, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_student(model, folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message and len(message) < 600
    return message


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "targets"), ADAPTERS)
def test_a_saved_adapter_computes_as_before_and_is_frozen(tmp_path: Path, kind: str, targets: str) -> None:
    expected = write_student(tmp_path, replace(LORA, kind=kind, targets=targets))
    model = filled_model()
    bare = prediction(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT's, that the model has another name than the adapter says
        roles = AdapterRoles(load_student(model, tmp_path))
    assert isinstance(roles.wrapped, PeftModel) and not any(p.requires_grad for p in roles.wrapped.parameters())
    assert torch.equal(prediction(roles.model), prediction(AdapterRoles(expected).model))
    with roles.teacher() as teacher:
        assert torch.equal(prediction(teacher), bare)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_peft_reads_and_merges_a_saved_adapter(tmp_path: Path, kind: str) -> None:
    expected = write_student(tmp_path, replace(LORA, kind=kind, targets="all"))
    keys = set(load_file(tmp_path / ADAPTER_WEIGHTS))
    assert keys == {PEFT_PREFIX + portable_name(n, STUDENT) for n, _ in lora_parameters(expected)}
    wanted = prediction(AdapterRoles(expected).model)
    bare = filled_model()
    untouched = prediction(bare)
    loaded = PeftModel.from_pretrained(bare, str(tmp_path))  # type: ignore[arg-type]
    assert keys == {PEFT_PREFIX + portable_name(n, "default") for n, _ in lora_parameters(loaded)}
    scale = (wanted - untouched).abs().max()
    # PEFT's own layers add the two branches in another order.
    assert (prediction(loaded.get_base_model()) - wanted).abs().max() < 1e-5 * scale  # type: ignore[arg-type]
    merged = loaded.merge_and_unload()
    assert not [n for n, _ in merged.named_parameters() if "lora_" in n]
    assert scale > 1e-2 and (prediction(merged) - wanted).abs().max() < 1e-4 * scale


def test_a_folder_without_an_adapter(folder: Path) -> None:
    model = build_model(mini_config())
    assert "no adapter here" in load_fault(model, folder / "nowhere")
    (folder / ADAPTER_CONFIG).unlink()
    assert ADAPTER_CONFIG in load_fault(model, folder)


@pytest.mark.heavy
@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_a_truncated_adapter(folder: Path, keep: float) -> None:
    content = (folder / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(content[: int(len(content) * keep) if 0 < keep < 1 else int(keep)])
    fault = "not a whole safetensors file" if keep else "not a readable weights file: an empty file"
    assert f"{ADAPTER_WEIGHTS}: {fault}" in load_fault(build_model(mini_config()), folder)


@pytest.mark.heavy
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_adapter_config(folder: Path, text: str) -> None:
    (folder / ADAPTER_CONFIG).write_text(text)
    assert ADAPTER_CONFIG in load_fault(build_model(mini_config()), folder)


@pytest.mark.heavy
def test_an_adapter_of_another_rank_than_it_says(folder: Path) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | {"r": 2}))
    message = load_fault(build_model(mini_config()), folder)
    n = len(load_file(folder / ADAPTER_WEIGHTS))
    assert f"of {n} tensors {n} of another shape (first " in message


@pytest.mark.heavy
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
