"""The objectives on the real classes: what they train, what they leave alone, and who gets a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import stub_model
import torch
from mini_model import mini_model

from anytext2.batch import collate
from anytext2.model import AnyText2, build_model, load_model_config
from anytext2.randomness import Draws
from distill.objectives import OBJECTIVES, FullWeightObjective
from distill.objectives.base import StepInput
from distill.student import LoraSection, Roles, add_student

CHARACTERS = "ABCDEFGHIJ"


@pytest.fixture
def model(tmp_path: Path) -> AnyText2:
    """The smallest model with every weight random: zero-initialised layers would hide missing gradients."""
    charset = tmp_path / "charset.txt"
    charset.write_text("\n".join(CHARACTERS) + "\n", encoding="utf-8")
    model = mini_model()
    model.text_predictor.cfg = replace(model.text_predictor.cfg, charset=str(charset))
    return model


def step_input(model: AnyText2, count: int = 2) -> StepInput:
    samples = []
    for index in range(count):
        ink = torch.rand(3, 80, 512, generator=torch.Generator().manual_seed(index)) > 0.7
        samples.append(replace(stub_model.sample(index), glyph_line=ink.byte()))
    batch = collate(samples)
    with torch.inference_mode():
        latent, masked = model.encode(batch.image), model.masked_latents(batch)
    return StepInput(batch, Draws(1, (0,) * count, tuple(range(count))), latent, masked)


@pytest.mark.parametrize("name", ["denoise", "autoencode", "recognize"])
def test_every_trained_weight_gets_a_gradient_and_no_other(model: AnyText2, name: str) -> None:
    options = {"denoise": {"scope": "all", "context_dropout": 0.5}}.get(name, {})
    objective = OBJECTIVES[name](OBJECTIVES[name].Config(**options), stub_model.SCHEDULE)
    assert isinstance(objective, FullWeightObjective)
    model.requires_grad_(False)
    trained = dict(objective.trainable(model))
    for parameter in trained.values():
        parameter.requires_grad_(True)
    objective.loss(Roles(model), step_input(model)).loss.backward()
    without = {name for name, parameter in trained.items() if parameter.grad is None}
    # the font recogniser's head reads characters; only the features under it are used
    assert without == {n for n in trained if n.startswith("embedding_manager.font_predictor.head.")}
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
    assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)


def test_denoise_in_official_scope_trains_what_the_released_code_trains() -> None:
    """580 tensors of 427,776,729 parameters, counted in the reference implementation's optimizer."""
    official = build_model(load_model_config("sd15"), device="meta")
    objective = OBJECTIVES["denoise"](OBJECTIVES["denoise"].Config(), stub_model.SCHEDULE)
    trained = dict(objective.trainable(official))
    assert len(trained) == 580
    assert sum(parameter.numel() for parameter in trained.values()) == 427_776_729


@pytest.mark.parametrize("precision", ["float32", "autocast bfloat16"])
@pytest.mark.parametrize("name", ["consistency", "phased", "trajectory", "x0_regression"])
def test_every_lora_tensor_gets_a_gradient_and_no_base_weight(model: AnyText2, name: str, precision: str) -> None:
    bare = model.float()
    item = step_input(bare)
    wrapped = add_student(bare, LoraSection(rank=2, alpha=2), seed=0)
    lora = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    for parameter in lora.values():  # B starts at zero, where A has no gradient
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    objective = OBJECTIVES[name](OBJECTIVES[name].Config(), stub_model.SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
        output = objective.loss(Roles(wrapped), item)
    output.loss.backward()
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    assert lora and all("lora_" in n for n in lora)
    assert [n for n, p in lora.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for n, p in wrapped.named_parameters() if n not in lora)
