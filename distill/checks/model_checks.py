"""Sanity checks of the model on one batch: conditions, recogniser, WriteNet and gradients, before the first step.

Each function returns findings; `require_sound` raises an error of one line for them. The checks call the model as
training does and leave it unchanged. The forerunner of this project broke six of these rules while its loss fell.

Shape suffixes: B batch, T tokens, D width, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anytext2.core.batch import Batch, Conditions
from anytext2.core.line_crop import recognizer_input
from anytext2.model.anytext2 import AnyText2
from anytext2.model.text_encoder import PLACEHOLDER_TOKEN, tokenize_text_captions
from distill.checks.batch_checks import Finding

_TOLERANCE = 1e-2  # share of the largest change that rounding may cause elsewhere
_LOSS_SCALES = (1.0, 2.0**10, 2.0**20)  # half precision loses small gradients; a path that exists shows at one of these
_PROBE_STD = 0.02


class FirstBatchError(ValueError):
    """The run must not start; the message is one line."""


def require_sound(findings: Sequence[Finding]) -> None:
    """Raises FirstBatchError with the first finding and the number of the others; returns when there are none."""
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise FirstBatchError(f"audit: {findings[0]}{more}")


# --- conditions ---


@torch.inference_mode()
def check_conditions(model: AnyText2, batch: Batch, conditions: Conditions, max_probes: int = 16) -> list[Finding]:
    """Whether `conditions` belong to `batch`, and every line's embedding stands at its own placeholder.

    The latter is probed: one line's glyphs and colour are inverted and everything is encoded again. The first token
    that changes (the text tower is causal) must be that line's placeholder, in its own sample and in no other.
    Projections that are zero get noise meanwhile: in a new teacher neither glyphs nor colours reach any token.
    max_probes: how many lines are probed at most; samples with the most lines come first.
    """
    findings = [
        Finding("conditions", name, "holds values that are not finite")
        for name, tensor in vars(conditions).items()
        if not torch.isfinite(tensor).all()
    ]
    findings.extend(_hints(batch, conditions))
    if findings:
        return findings
    base = model.encode_conditions(batch, conditions.masked_latent)
    for name in ("image_context", "text_context"):
        given, fresh = getattr(conditions, name), getattr(base, name)
        if given.shape != fresh.shape or _distance(given, fresh) > _TOLERANCE:
            findings.append(Finding("conditions", name, "is not what the model makes of this batch"))
    lines = [(row, line) for row in range(batch.size) for line in range(batch.n_lines[row])]
    lines.sort(key=lambda at: -batch.n_lines[at[0]])
    silent = _silent_projections(model)
    with _perturbed(silent):
        base = model.encode_conditions(batch, conditions.masked_latent) if silent else base
        for row, line in lines[:max_probes]:
            findings.extend(_probe_line(model, batch, base, row, line))
    return findings


def _silent_projections(model: AnyText2) -> list[nn.Parameter]:
    """The projections of glyphs and colours, if all are zero as in a new teacher (launch/make_teacher.py)."""
    embedding = model.embedding_manager
    layers = [projection[0] for projection in (embedding.proj, embedding.color_proj)]
    weights = [layer.get_parameter("weight") for layer in layers]
    if any(bool(weight.any()) for weight in weights):
        return []
    # The biases too: the norm behind them makes a grey and its double the same.
    return [*weights, *(layer.get_parameter("bias") for layer in layers)]


def _hints(batch: Batch, conditions: Conditions) -> Iterator[Finding]:
    """The WriteNet must see the batch's own ink and positions."""
    for name, given, wanted in (
        ("glyph", conditions.glyph, batch.glyph),
        ("position", conditions.position, batch.position.sum(dim=1, keepdim=True)),
    ):
        if given.shape != wanted.shape or not torch.equal(given.float(), wanted.to(given.device).float()):
            ink = (
                f"{float((given != 0).float().mean()):.1%} of it is not zero, {float((wanted != 0).float().mean()):.1%}"
            )
            yield Finding("conditions", name, f"is not the batch's own: {ink} in the batch")


def _probe_line(model: AnyText2, batch: Batch, base: Conditions, row: int, line: int) -> Iterator[Finding]:
    glyphs, colors = batch.glyph_line.clone(), batch.color.clone()
    glyphs[row, line] = 1 - glyphs[row, line]
    colors[row, line] = (255 - colors[row, line]).abs()
    probed = model.encode_conditions(replace(batch, glyph_line=glyphs, color=colors), base.masked_latent)
    change_BT = (probed.text_context.float() - base.text_context.float()).abs().amax(dim=2).cpu()
    where, largest = f"{batch.name[row]}, line {line + 1}", float(change_BT.max())
    if largest <= 1e-6 * float(base.text_context.abs().max()):
        yield Finding("line embedding", where, "reaches no token of the text caption")
        return
    changed_BT = change_BT > _TOLERANCE * largest
    strays = [batch.name[other] for other in range(batch.size) if other != row and bool(changed_BT[other].any())]
    if strays:
        yield Finding("line embedding", where, f"reaches another sample, {strays[0]}")
    places = (tokenize_text_captions([batch.text_caption[row]])[0] == PLACEHOLDER_TOKEN).nonzero()[:, 0].tolist()
    wanted = places[line] if line < len(places) else None
    first = int(changed_BT[row].nonzero()[0]) if bool(changed_BT[row].any()) else None
    if first != wanted:
        yield Finding(
            "line embedding", where, f"stands at token {first} of the text caption, its placeholder is {wanted}"
        )
    if not torch.equal(probed.image_context, base.image_context):
        yield Finding("line embedding", where, "changes the image caption's encoding")


def _distance(given: Tensor, wanted: Tensor) -> float:
    given, wanted = given.float(), wanted.to(given.device).float()
    return float((given - wanted).norm() / wanted.norm().clamp_min(1e-12))


# --- the recogniser ---


@torch.inference_mode()
def check_recognizer(model: AnyText2, batch: Batch, masked_latent: Tensor) -> list[Finding]:
    """Whether the recogniser, which feeds the line embeddings, gets the batch's own glyphs.

    `check_conditions` does not see a wrong scale: glyphs divided by 255 still reach their placeholders, nearly empty.
    """
    lines = [(row, line) for row in range(batch.size) for line in range(batch.n_lines[row])]
    if not lines:
        return []
    inputs: list[Tensor] = []
    handle = model.text_predictor.backbone.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        model.encode_conditions(batch, masked_latent)
    finally:
        handle.remove()
    wanted_N = recognizer_input(torch.stack([batch.glyph_line[at] for at in lines]).unsqueeze(1).float())
    given_N = torch.cat(inputs) if inputs else wanted_N[:0]
    if given_N.shape != wanted_N.shape:
        return [Finding("line's glyphs", "recogniser", f"gets {len(given_N)} lines, {len(wanted_N)} in the batch")]
    return [
        Finding(
            "line's glyphs",
            f"{batch.name[row]}, line {line + 1}",
            f"the recogniser's input is not the batch's own: {_range(given)}, {_range(wanted)} in the batch",
        )
        for (row, line), given, wanted in zip(lines, given_N, wanted_N, strict=True)
        if _distance(given, wanted) > _TOLERANCE
    ]


def _range(line: Tensor) -> str:
    inside = line[line != 0]  # padding is 0
    return f"values of {float(inside.min()):.2f} to {float(inside.max()):.2f}" if inside.numel() else "nothing"


# --- the WriteNet ---


@torch.inference_mode()
def check_control(model: AnyText2, conditions: Conditions) -> list[Finding]:
    """Whether the WriteNet's maps depend on neither x_t nor t, and the UNet leaves them unchanged.

    The official WriteNet is trained with a zero latent at t = 0. So it must not be given x_t or t, either.
    """
    given_noise: list[bool] = []

    def record_inputs(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (*args[4:], named.get("x_BChw"), named.get("t_B"))
        given_noise.append(any(value is not None and bool(value.any()) for value in given))

    handle = model.control_model.register_forward_pre_hook(record_inputs, with_kwargs=True)
    try:
        findings = _control_maps(model, conditions)
    finally:
        handle.remove()
    if any(given_noise):
        findings.append(Finding("WriteNet", "input", "is given x_t or t, where it is trained with zeros for both"))
    return findings


def _control_maps(model: AnyText2, conditions: Conditions) -> list[Finding]:
    device, latent = conditions.masked_latent.device, conditions.masked_latent
    generator = torch.Generator().manual_seed(0)
    first = model.control_maps(conditions)
    kept = tuple(level.clone() for level in first)
    findings: list[Finding] = []
    for timestep in (999, 19):
        x_Bzhw = torch.randn(latent.shape, generator=generator).to(device, latent.dtype)
        t_B = torch.full((latent.shape[0],), timestep, device=device)
        model.predict_noise(x_Bzhw, t_B, conditions.image_context, first)
        touched = [k for k, (now, then) in enumerate(zip(first, kept, strict=True)) if not torch.equal(now, then)]
        if touched:
            findings.append(Finding("WriteNet", f"map {touched[0]}", "was changed in place by the UNet's call"))
        again = model.control_maps(conditions)
        moved = [k for k, (now, then) in enumerate(zip(again, kept, strict=True)) if _distance(now, then) > 1e-4]
        if moved:
            message = f"depends on x_t or t: another value after the UNet was called at t = {timestep}"
            findings.append(Finding("WriteNet", f"map {moved[0]}", message))
        if findings:
            break
    return findings


# --- gradients ---


def check_adapters(
    module: nn.Module, loss: Callable[[], Tensor], adapter: str = "student", beside: Sequence[str] = ()
) -> list[Finding]:
    """Whether exactly the LoRA of `adapter`, and those of `beside`, are trained, and `loss` reaches every tensor of it.

    module: whatever holds the parameters (a PeftModel). loss: one micro-batch forward to its scalar. A fresh LoRA's B
    is zero, which makes the gradient of A exactly zero; so the gradients are taken with noise added to every B, and
    the values are put back bit by bit. No .grad is touched and no hook of an optimizer runs.
    """
    findings: list[Finding] = []
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if ".lora_" in name and f".{adapter}." in name:
            if parameter.requires_grad:
                trained[name] = parameter
            else:
                findings.append(Finding("adapter", name, "does not require a gradient, but is to be trained"))
        elif parameter.requires_grad and not any(f".{other}." in name for other in beside):
            findings.append(
                Finding("frozen weight", name, "requires a gradient, but only the adapter is to be trained")
            )
    if not trained:
        findings.append(Finding("adapter", adapter, "no LoRA tensor of this name is trained"))
        return findings
    with _perturbed([p for name, p in trained.items() if ".lora_B." in name]):
        findings.extend(_gradients(trained, loss))
    return findings


def _gradients(trained: dict[str, nn.Parameter], loss: Callable[[], Tensor]) -> Iterator[Finding]:
    waiting = dict(trained)
    for scale in _LOSS_SCALES:
        with torch.enable_grad():
            value = loss()
        if not value.requires_grad:
            yield Finding("adapter", "loss", "depends on no LoRA tensor at all")
            return
        gradients = torch.autograd.grad(value * scale, list(waiting.values()), allow_unused=True)
        if scale == 1.0:
            broken = [
                n for n, g in zip(waiting, gradients, strict=True) if g is not None and not torch.isfinite(g).all()
            ]
            yield from (Finding("adapter", name, "its gradient is not finite") for name in broken)
        waiting = {
            name: waiting[name]
            for name, gradient in zip(list(waiting), gradients, strict=True)
            if gradient is None or not bool(gradient.any())
        }
        if not waiting:
            return
    yield from (Finding("adapter", name, "gets no gradient from the loss") for name in waiting)


@contextmanager
def _perturbed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Adds noise to the parameters; afterwards they hold their old values exactly."""
    kept = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in parameters:
                noise = torch.randn(parameter.shape, generator=generator) * _PROBE_STD
                parameter.add_(noise.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
