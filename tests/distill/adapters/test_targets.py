"""Which modules a preset, a file or a pattern puts the LoRA on, and that each of them can learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import AdapterRoles, Roles
from distill.adapters.targets import TARGET_PRESETS, lora_targets
from distill.checks.model_checks import check_adapters
from tests.helpers.models.mini_model import mini_batch, mini_config, mini_model


@pytest.fixture(scope="module")
def official() -> AnyText2:
    """The official size, without memory for its weights."""
    return build_model(load_model_config("sd15"), "meta")


@pytest.fixture(scope="module")
def mini() -> AnyText2:
    return build_model(mini_config(), "meta")


# --- presets ---


def test_the_paper_preset_is_252_modules_in_the_official_size(official: AnyText2) -> None:
    names = lora_targets(official, "paper")
    assert len(names) == len(set(names)) == 252
    zero_convs = [n for n in names if ".zero_convs." in n]
    assert zero_convs == [f"control_model.zero_convs.{i}.0" for i in range(12)]
    by_part = {part: sum(n.startswith(part) for n in names) for part in ("model.diffusion_model.", "control_model.")}
    # 7 WriteNet blocks with two attentions of four projections each; the UNet's 16, of which 7 have attn1x and attn2x
    assert by_part == {"control_model.": 7 * 8 + 12, "model.diffusion_model.": 16 * 8 + 7 * 8}
    attention = [n for n in names if n not in zero_convs]
    assert {n.rsplit(".attn", 1)[1] for n in attention} == {
        f"{kind}.to_{projection}" for kind in ("1", "2", "1x", "2x") for projection in ("q", "k", "v", "out.0")
    }


def test_the_decoder_preset_is_the_attention_behind_the_control_maps(official: AnyText2) -> None:
    names = lora_targets(official, "decoder")
    # three transformers on each of three levels, of which two levels have the extra attention
    assert len(names) == 9 * 8 + 6 * 8
    assert {".".join(n.split(".")[:3]) for n in names} == {"model.diffusion_model.output_blocks"}
    assert sorted({int(n.split(".")[3]) for n in names}) == list(range(3, 12))
    assert set(names) < set(lora_targets(official, "paper"))


def test_the_all_preset_is_every_layer_but_one(official: AnyText2) -> None:
    names = lora_targets(official, "all")
    layers = {n for n, m in official.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    ours = {n for n in layers if n.startswith(("model.diffusion_model.", "control_model."))}
    assert len(names) == 487 and ours - set(names) == {"control_model.input_blocks.0.0"}


def loss_of(roles: Roles) -> torch.Tensor:
    """A step's way through WriteNet and UNet."""
    model, batch = roles.model, mini_batch()
    with torch.no_grad():
        conditions = model.encode_conditions(batch, model.masked_latents(batch))
    x = torch.randn(batch.size, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(1))
    eps = model.predict_noise(x, torch.tensor([0, 499, 999]), conditions.image_context, model.control_maps(conditions))
    return eps.square().mean()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("preset", "modules", "kind"),
    [("paper", 76, "lora"), ("decoder", 32, "rslora"), ("all", 167, "lora"), ("all", 167, "dora")],
)
def test_every_tensor_of_every_preset_and_kind_gets_a_gradient(preset: str, modules: int, kind: str) -> None:
    model = mini_model().float().eval()
    student = add_student(model, AdapterConfig(kind=kind, rank=2, alpha=2, targets=preset), seed=0)
    trained = [n for n, p in student.named_parameters() if p.requires_grad]
    assert len(trained) == modules * (3 if kind == "dora" else 2)
    assert check_adapters(student, lambda: loss_of(AdapterRoles(student))) == []


def test_the_layer_that_the_all_preset_leaves_out_would_learn_nothing() -> None:
    pattern = r"^control_model\.input_blocks\.0\.0$"
    student = add_student(mini_model().float().eval(), AdapterConfig(rank=2, alpha=2, targets=pattern), seed=0)
    findings = check_adapters(student, lambda: loss_of(AdapterRoles(student)))
    assert {f.message for f in findings} == {"gets no gradient from the loss"} and len(findings) == 2


# --- patterns and files ---


def test_a_regular_expression_selects_modules(mini: AnyText2) -> None:
    names = lora_targets(mini, r"^control_model\.zero_convs\.\d+\.0$")
    assert names and all(n.startswith("control_model.zero_convs.") for n in names)


def test_a_file_names_modules_parts_and_patterns(mini: AnyText2, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    lines = ["# the student", "", "control_model.zero_convs.1.0", "model.diffusion_model.middle_block  # all of it"]
    path.write_text("\n".join([*lines, r"output_blocks\.\d+\..*\.attn2x\.to_q$"]) + "\n", encoding="utf-8")
    names = lora_targets(mini, str(path))
    layers = [n for n, m in mini.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    wanted = [
        n
        for n in layers
        if n == "control_model.zero_convs.1.0"
        or n.startswith("model.diffusion_model.middle_block.")
        or ("diffusion_model.output_blocks" in n and n.endswith("attn2x.to_q"))
    ]
    assert names == wanted and len(names) > 20
    path.write_text("model.diffusion_model.input_blocks.1\n", encoding="utf-8")
    assert {n.split(".")[3] for n in lora_targets(mini, str(path))} == {"1"}  # a path is no prefix of 10, 11, ...


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["No such file", "paper, decoder, all"]),
        (b"\xff\xfe\x00", ["not UTF-8", "paper, decoder, all"]),
        (b"# nothing\n\n", ["no line names a module"]),
        (b"control_model.zero_convs.1.0\nnowhere\n", ["line 2, 'nowhere'", "matches no Linear or Conv2d"]),
        (b"model.diffusion_model.out.0\n", ["line 1", "matches no Linear or Conv2d"]),  # a GroupNorm
        (b"\n\na(\n", ["line 3, 'a('", "neither a module's path nor a pattern"]),
        (b"text_predictor\n", ["convolutions in groups", "first text_predictor."]),
        (b"control_model\ncond_stage_model\n", ["outside of UNet and WriteNet", "first cond_stage_model.tower."]),
        (b"first_stage_model.decoder\n", ["outside of UNet and WriteNet", "first first_stage_model.decoder."]),
        (rb"\.mlp\.c_fc$", ["outside of UNet and WriteNet", "begin with model.diffusion_model. or control_model."]),
    ],
)
def test_a_file_that_cannot_be_used(mini: AnyText2, tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    path = tmp_path / "targets.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        lora_targets(mini, str(path))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert message.startswith("lora.targets")


@pytest.mark.parametrize(
    ("targets", "words"),
    [("a(", "nor a pattern"), ("nowhere", "is no preset"), ("encoder", "is no preset"), (r"no\.where", "matches no")],
)
def test_targets_that_select_nothing_are_an_error(mini: AnyText2, targets: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        lora_targets(mini, targets)
    assert "\n" not in str(caught.value) and ", ".join(TARGET_PRESETS) in str(caught.value)
