"""The audit of conditions and gradients: the real tiny model passes; every planted fault is found."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from anytext2.core.batch import Batch, Conditions, Control
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import AdapterRoles
from distill.checks.fault_injection import FAULT_INJECTIONS
from distill.checks.model_checks import check_adapters, check_conditions, check_control, check_recognizer
from tests.helpers.audited import drawn_dataset, lined_batch, said


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return lined_batch(drawn_dataset(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def model() -> AnyText2:
    """The tiny model with every weight drawn, so that nothing is hidden behind a zero convolution."""
    torch.manual_seed(0)
    model = build_model(load_model_config("tiny")).requires_grad_(False)
    with torch.no_grad():
        for part in (model.model.diffusion_model, model.control_model):
            for parameter in part.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    return model


@pytest.fixture(scope="module")
def conditions(model: AnyText2, batch: Batch) -> Conditions:
    with torch.inference_mode():
        return model.encode_conditions(batch, model.masked_latents(batch))


# --- conditions ---


@pytest.fixture
def patched(model: AnyText2) -> Iterator[Callable[[nn.Module, str, Any], None]]:
    """Replaces a method of one module for one test."""
    done: list[tuple[nn.Module, str]] = []

    def patch(module: nn.Module, name: str, function: Any) -> None:
        object.__setattr__(module, name, MethodType(function, module))
        done.append((module, name))

    yield patch
    for module, name in done:
        object.__delattr__(module, name)


@pytest.mark.heavy
def test_real_conditions_pass(model: AnyText2, batch: Batch, conditions: Conditions) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert check_conditions(model, batch, conditions) == []
    assert check_control(model, conditions) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.heavy
def test_untrained_teacher_passes_too(batch: Batch) -> None:
    """Zero convolutions make all maps zero; that is how a teacher begins, and no fault."""
    torch.manual_seed(1)
    fresh = build_model(load_model_config("tiny"))
    with torch.inference_mode():
        conditions = fresh.encode_conditions(batch, fresh.masked_latents(batch))
    assert check_conditions(fresh, batch, conditions) == [] == check_control(fresh, conditions)


def _packed(order: Callable[[list[int]], list[int]]) -> Callable[..., Any]:
    """embed_text_captions with the lines of the batch in another order."""

    def embed_text_captions(self: Any, captions: Any, lines_ND: torch.Tensor, n_lines: Any, names: Any) -> torch.Tensor:
        lines = lines_ND[order(list(range(len(lines_ND))))]
        return type(self).embed_text_captions(self, captions, lines, n_lines, names)

    return embed_text_captions


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda rows: [0, *rows[:-1]], "reaches"),  # line 1 twice: the last line's embedding is lost
        (lambda rows: [rows[1], rows[0], *rows[2:]], "stands at token"),  # two lines of one sample exchanged
        (lambda rows: rows[::-1], "reaches another sample"),  # line by line instead of sample by sample
    ],
)
def test_an_embedding_at_the_wrong_line_is_found(
    model: AnyText2, batch: Batch, conditions: Conditions, patched: Any, order: Any, message: str
) -> None:
    patched(model.cond_stage_model, "embed_text_captions", _packed(order))
    findings = check_conditions(model, batch, conditions)
    assert any(f.check == "line embedding" and message in f.message for f in findings), said(findings)


def test_only_the_first_placeholder_replaced_is_found(
    model: AnyText2, batch: Batch, conditions: Conditions, patched: Any
) -> None:
    """The forerunner's tokens: only one placeholder was found, the other lines' embeddings were lost."""

    def embed_text_captions(self: Any, captions: Any, lines_ND: torch.Tensor, n_lines: Any, names: Any) -> torch.Tensor:
        firsts = [sum(n_lines[:row]) for row in range(len(n_lines))]
        single = [caption.replace("* , ", ", ", count - 1) for caption, count in zip(captions, n_lines, strict=True)]
        return type(self).embed_text_captions(self, single, lines_ND[firsts], [1] * len(n_lines), names)

    patched(model.cond_stage_model, "embed_text_captions", embed_text_captions)
    findings = check_conditions(model, batch, conditions)
    lost = [f for f in findings if f.message == "reaches no token of the text caption"]
    assert len(lost) == sum(batch.n_lines) - batch.size, said(findings)


@pytest.mark.heavy
def test_lines_of_faint_ink_are_found(model: AnyText2, batch: Batch, conditions: Conditions) -> None:
    """The forerunner divided glyphs of 0 and 1 by 255: every line reaches its placeholder, and says nothing."""
    assert check_recognizer(model, batch, conditions.masked_latent) == []
    thin = copy.deepcopy(model)
    FAULT_INJECTIONS["glyph_lines_thin"](thin)
    assert check_conditions(thin, batch, thin.encode_conditions(batch, conditions.masked_latent)) == []
    findings = check_recognizer(thin, batch, conditions.masked_latent)
    assert len(findings) == sum(batch.n_lines) > 0
    assert "values of -1.00 to -0.99, values of -1.00 to 1.00 in the batch" in said(findings)
    blank = replace(batch, glyph_line=torch.zeros_like(batch.glyph_line))
    assert check_recognizer(model, blank, conditions.masked_latent) == [], "a line that has no ink is no faint one"
    assert not model.text_predictor.backbone._forward_pre_hooks


def test_conditions_of_another_batch_are_found(model: AnyText2, batch: Batch, conditions: Conditions) -> None:
    other = replace(conditions, image_context=conditions.image_context.flip(0))
    assert "image_context: is not what the model makes" in said(check_conditions(model, batch, other))
    white = replace(conditions, glyph=torch.ones_like(conditions.glyph))
    assert "glyph: is not the batch's own: 100.0%" in said(check_conditions(model, batch, white))
    clipped = replace(conditions, position=conditions.position * 0)
    assert "position: is not the batch's own" in said(check_conditions(model, batch, clipped))
    broken = replace(conditions, text_context=conditions.text_context * float("inf"))
    assert "text_context: holds values that are not finite" in said(check_conditions(model, batch, broken))


def test_maps_that_follow_x_and_t_are_found(model: AnyText2, conditions: Conditions, patched: Any) -> None:
    """A WriteNet that is fed the noisy latent of the last call, as with fast_control switched off."""
    seen: list[torch.Tensor] = []

    def predict_noise(self: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: Control) -> Any:
        seen[:] = [x.mean() + t.float().mean() / 1000]
        return type(self).predict_noise(self, x, t, context, control)

    def control_maps(self: Any, conditions: Conditions) -> Control:
        maps = type(self).control_maps(self, conditions)
        return tuple(level + seen[0] for level in maps) if seen else maps

    patched(model, "predict_noise", predict_noise)
    patched(model, "control_maps", control_maps)
    assert "WriteNet: map 0: depends on x_t or t" in said(check_control(model, conditions))


def test_a_writenet_that_is_given_x_and_t_is_found(model: AnyText2, conditions: Conditions) -> None:
    faulty = copy.deepcopy(model)
    FAULT_INJECTIONS["writenet_sees_noise"](faulty)
    assert "WriteNet: input: is given x_t or t" in said(check_control(faulty, conditions))
    assert not model.control_model._forward_pre_hooks


def test_maps_changed_by_the_unet_are_found(model: AnyText2, conditions: Conditions, patched: Any) -> None:
    def predict_noise(self: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: Control) -> Any:
        control[2].add_(1)
        return type(self).predict_noise(self, x, t, context, control)

    patched(model, "predict_noise", predict_noise)
    assert "WriteNet: map 2: was changed in place" in said(check_control(model, conditions))


# --- gradients ---


@pytest.fixture
def student(model: AnyText2, batch: Batch) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A fresh LoRA (B is zero) on the tiny model, and a loss through all of it."""
    model = copy.deepcopy(model)
    wrapped = add_student(model, AdapterConfig(rank=4, alpha=4.0), seed=0)
    roles = AdapterRoles(wrapped)
    one = collate_first(batch)
    with torch.no_grad():
        conditions = model.encode_conditions(one, model.masked_latents(one))
    x = torch.randn(conditions.masked_latent.shape, generator=torch.Generator().manual_seed(2))

    def loss() -> torch.Tensor:
        eps = roles.model.predict_noise(
            x, torch.tensor([500]), conditions.image_context, roles.model.control_maps(conditions)
        )
        return eps.square().mean()

    return wrapped, loss


def collate_first(batch: Batch) -> Batch:
    """The batch's first sample alone."""
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    first = Batch(**{name: None if value is None else value[:1] for name, value in values.items()})
    n = batch.n_lines[0]
    return dataclasses.replace(first, line_index=batch.line_index[:, :n], font_line=batch.font_line[:n])


@pytest.mark.heavy
def test_a_fresh_lora_passes_and_is_left_as_it_was(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    a_gradients = torch.autograd.grad(
        loss(), [p for n, p in wrapped.named_parameters() if ".lora_A." in n], allow_unused=True
    )
    assert not any(g is not None and bool(g.any()) for g in a_gradients)  # what a naive audit would stop at
    assert check_adapters(wrapped, loss) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())
    assert all(parameter.grad is None for parameter in wrapped.parameters())


def test_values_return_when_the_loss_fails(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, _ = student
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}

    def fail() -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        check_adapters(wrapped, fail)
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())


@pytest.mark.heavy
def test_an_encoder_without_gradient_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    """As the reference UNet does it: the encoder under no_grad. Its LoRA never learns."""
    wrapped, loss = student
    unet = wrapped.get_base_model().model.diffusion_model  # type: ignore[operator]
    for block in unet.input_blocks:
        block.register_forward_hook(lambda module, inputs, output: output.detach())
    encoder = {n for n, _ in wrapped.named_parameters() if ".lora_" in n and "diffusion_model.input_blocks" in n}
    findings = check_adapters(wrapped, loss)
    assert {f.where for f in findings} == encoder and encoder
    assert {f.message for f in findings} == {"gets no gradient from the loss"}


@pytest.mark.heavy
def test_a_writenet_computed_without_gradient_is_found(
    student: tuple[nn.Module, Callable[[], torch.Tensor]],
) -> None:
    wrapped, loss = student
    model = wrapped.get_base_model()  # type: ignore[operator]
    model.control_model.register_forward_hook(lambda module, inputs, maps: tuple(level.detach() for level in maps))
    assert {"control_model" in f.where for f in check_adapters(wrapped, loss)} == {True}


def test_a_trainable_base_weight_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    name, weight = next((n, p) for n, p in wrapped.named_parameters() if n.endswith("out.2.weight"))
    weight.requires_grad_(True)
    findings = check_adapters(wrapped, loss)
    assert [(f.check, f.where) for f in findings] == [("frozen weight", name)]


def test_a_frozen_lora_tensor_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    name, weight = next((n, p) for n, p in wrapped.named_parameters() if ".lora_A." in n)
    weight.requires_grad_(False)
    assert [(f.check, f.where) for f in check_adapters(wrapped, loss)] == [("adapter", name)]


def test_a_loss_that_ignores_the_adapter_is_found(student: tuple[nn.Module, Callable[[], torch.Tensor]]) -> None:
    wrapped, loss = student
    eps = loss().detach()
    unused = next(p for p in wrapped.parameters() if p.requires_grad)
    assert said(check_adapters(wrapped, lambda: eps)) == "adapter: loss: depends on no LoRA tensor at all"
    assert len(check_adapters(wrapped, lambda: unused.sum())) == len(_trained(wrapped)) - 1
    assert "adapter: ema: no LoRA tensor of this name" in said(check_adapters(wrapped, loss, adapter="ema"))


def _trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


class _Vanishing(nn.Module):
    """A gradient too small for half precision unless the loss is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.ModuleDict()
        self.to_q["lora_A"] = nn.ModuleDict({"student": nn.Linear(2, 2, bias=False, dtype=torch.float16)})
        self.layer = self.to_q["lora_A"]["student"]


def test_a_gradient_lost_in_half_precision_is_no_finding() -> None:
    holder = _Vanishing()
    x = torch.full((1, 2), 1e-4, dtype=torch.float16)

    def loss() -> torch.Tensor:
        return holder.layer(x).float().mean() * 1e-6

    weight = holder.layer.weight
    assert not torch.autograd.grad(loss(), weight)[0].any()
    assert check_adapters(holder, loss) == []


def test_a_gradient_that_is_not_finite_is_found() -> None:
    holder = _Vanishing()

    def loss() -> torch.Tensor:
        return (holder.layer(torch.zeros(1, 2, dtype=torch.float16)).float().abs().sqrt()).mean()

    assert "its gradient is not finite" in said(check_adapters(holder, loss))
