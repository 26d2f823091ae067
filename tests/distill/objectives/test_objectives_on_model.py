"""The objectives on the real classes: what they train, what they leave alone, and who gets a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anytext2.core.batch import collate
from anytext2.core.rng import Draws
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import AdapterRoles, Roles
from distill.diffusion.guidance import with_negative
from distill.losses.step_input import StepInput
from distill.losses.terms import TERMS
from distill.losses.writenet_attention import AttentionRecorder
from distill.objectives import OBJECTIVES
from distill.objectives.base import FullWeightObjective
from tests.helpers.models import stub_model
from tests.helpers.models.mini_model import mini_model

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


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["denoise", "autoencode", "recognize"])
def test_every_trained_weight_gets_a_gradient_and_no_other(model: AnyText2, name: str) -> None:
    options = {"denoise": {"scope": "all", "context_dropout": 0.5}}.get(name, {})
    objective = OBJECTIVES[name](OBJECTIVES[name].Config(**options), stub_model.SCHEDULE)
    assert isinstance(objective, FullWeightObjective)
    model.requires_grad_(False)
    trained = dict(objective.trainable(model))
    for parameter in trained.values():
        parameter.requires_grad_(True)
    objective.loss(AdapterRoles(model), step_input(model)).loss.backward()
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


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["float32", "autocast bfloat16"])
@pytest.mark.parametrize("name", ["consistency", "phased", "trajectory", "x0_regression"])
def test_every_lora_tensor_gets_a_gradient_and_no_base_weight(model: AnyText2, name: str, precision: str) -> None:
    bare = model.float()
    item = step_input(bare)
    wrapped = add_student(bare, AdapterConfig(rank=2, alpha=2), seed=0)
    lora = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    for parameter in lora.values():  # B starts at zero, where A has no gradient
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    objective = OBJECTIVES[name](OBJECTIVES[name].Config(), stub_model.SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
        output = objective.loss(AdapterRoles(wrapped), item)
    output.loss.backward()
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    assert lora and all("lora_" in n for n in lora)
    assert [n for n, p in lora.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for n, p in wrapped.named_parameters() if n not in lora)


def student_of(model: AnyText2) -> tuple[Roles, dict[str, torch.nn.Parameter]]:
    """A student that differs from its teacher, and its LoRA tensors."""
    wrapped = add_student(model, AdapterConfig(rank=2, alpha=2), seed=0)
    lora = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    for seed, parameter in enumerate(lora.values()):
        torch.nn.init.normal_(parameter, 0.0, 0.05, generator=torch.Generator().manual_seed(seed))
    return AdapterRoles(wrapped), lora


@pytest.mark.heavy
@pytest.mark.parametrize("recompute", ["none", "selective", "all"])
@pytest.mark.parametrize("name", ["consistency", "phased", "x0_regression"])
def test_all_terms_together_reach_every_lora_tensor(model: AnyText2, name: str, recompute: str) -> None:
    bare = model.float()
    item = step_input(bare)
    bare.control_model.activation_checkpointing = bare.model.diffusion_model.activation_checkpointing = recompute
    roles, lora = student_of(bare)
    terms = {term: TERMS[term].Config(weight=0.1) for term in TERMS}
    output = OBJECTIVES[name](OBJECTIVES[name].Config(terms=terms), stub_model.SCHEDULE).loss(roles, item)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(output.report[f"term/{term}"].isfinite() and output.report[f"term/{term}"] > 0 for term in terms)
    assert [n for n, p in lora.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []
    assert all(p.grad is None for n, p in roles.wrapped.named_parameters() if n not in lora)


@pytest.mark.heavy
@pytest.mark.parametrize("term", list(TERMS))
def test_the_gradient_of_each_term_is_its_slope(model: AnyText2, term: str) -> None:
    """In float64, where the target does not move with the student; the term outweighs the distance."""
    own = {"alpha": 0.0} if term == "focal_frequency" else {}  # else its weights move, without a gradient
    item = step_input(model)
    roles, lora = student_of(model)
    options = {"teacher_interval": 1000, "terms": {term: TERMS[term].Config(weight=1e6, **own)}}
    objective = OBJECTIVES["phased"](OBJECTIVES["phased"].Config(**options), stub_model.SCHEDULE)
    gradients = torch.autograd.grad(objective.loss(roles, item).loss, list(lora.values()), allow_unused=True)
    slope = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    assert slope > 0
    losses = []
    for sign in (1.0, -2.0):  # there, and back to the other side
        with torch.no_grad():
            for parameter, gradient in zip(lora.values(), gradients, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=float(sign * 1e-6 / slope))
            losses.append(objective.loss(roles, item).loss)
    torch.testing.assert_close((losses[0] - losses[1]) / 2e-6, slope, rtol=1e-3, atol=0)
    assert losses[1] < losses[0]


@pytest.mark.heavy
def test_attention_is_taken_with_the_lora_and_leaves_nothing_behind(model: AnyText2) -> None:
    item = step_input(model)
    roles, lora = student_of(model)
    assert item.masked_latent is not None
    with torch.no_grad():
        conditions = model.encode_conditions(item.batch, item.masked_latent.clone())
        recorder, idle = AttentionRecorder(active=True), AttentionRecorder()
        control = recorder.write(model, conditions, "student")
        for ours, plain in zip(control, idle.write(model, conditions, "student"), strict=True):
            assert torch.equal(ours, plain)
        assert not idle.recorded
        for ours, plain in zip(control, model.control_maps(conditions), strict=True):
            assert torch.equal(ours, plain)
        with roles.teacher() as undistilled:
            recorder.write(
                undistilled, with_negative(conditions, model.negative_contexts()), "teacher", item.batch.size
            )
        for parameter in lora.values():
            parameter.zero_()
        recorder.write(model, conditions, "without")
    attention, teachers, without = (recorder.of(role) for role in ("student", "teacher", "without"))
    assert attention and not any(one.query.is_inference() or one.key.is_inference() for one in teachers)
    layers = [layer for name, layer in model.control_model.named_modules() if name.endswith("attn2")]
    assert len(layers) == len(attention)
    for one, teacher, bare, layer in zip(attention, teachers, without, layers, strict=True):
        torch.testing.assert_close(teacher.query, bare.query)
        torch.testing.assert_close(teacher.key, bare.key)
        assert not torch.allclose(one.key, bare.key) and not torch.allclose(one.query, bare.query)
        torch.testing.assert_close(bare.key, conditions.text_context @ layer.to_k.weight.T)
        total = one.probabilities().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
    assert not any(module._forward_hooks for module in model.modules())
