"""What an objective is: a small object that turns one micro-batch into (loss, report), and nothing else.

The trainer knows no objective and an objective knows no engine. A new idea is a new file here and one entry in
``OBJECTIVES`` (distill/objectives/__init__.py).

Shape legend: B batch, C channels, H/W pixels, h/w latent cells, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from anytext2.batch import Batch, Conditions, Control
    from anytext2.model import AnyText2
    from anytext2.randomness import Draws

Trains = Literal["lora", "teacher", "vae", "recognizer"]


@dataclass(frozen=True)
class StepInput:
    """One micro-batch on the device, with its source of randomness.

    ``latent`` [B,C,h,w] is the scaled latent of the image and ``masked_latent`` that of the masked image; both are None
    for objectives that need no latents. Either may be an inference tensor. ``update``: finished optimizer updates.
    """

    batch: Batch
    draws: Draws
    latent: Tensor | None = None
    masked_latent: Tensor | None = None
    update: int = 0


@dataclass(frozen=True)
class LossOutput:
    """``loss`` is the mean of ``per_sample`` [B]; ``report`` holds detached scalars that stay on the device."""

    loss: Tensor
    per_sample: Tensor
    report: dict[str, Tensor]


class Roles(Protocol):
    """The parts that one set of base weights plays. Outside both contexts the student's adapters are active."""

    @property
    def model(self) -> AnyText2: ...

    def teacher(self) -> AbstractContextManager[object]:
        """Adapters off, inference mode: every tensor made inside must be cloned before it enters a graph."""

    def target(self) -> AbstractContextManager[object]:
        """The weights of the consistency target (the student or its average), inference mode."""

    def using(self, adapter: str) -> AbstractContextManager[object]:
        """Another adapter in the student's place, with its gradients."""


class Objective(Protocol):
    """Built as ``Class(config: Class.Config, schedule: NoiseSchedule)``; stateless between calls."""

    trains: Trains
    needs_latents: bool

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """The loss of one micro-batch. Samples weigh equally, so the mean over micro-batches is the batch's mean."""


@runtime_checkable
class FullWeightObjective(Protocol):
    """An objective that trains base weights (teacher, VAE, recogniser) instead of a LoRA."""

    def trainable(self, model: AnyText2) -> Iterable[tuple[str, nn.Parameter]]:
        """(name, parameter) of what it trains; everything else is to be frozen by the caller."""


@runtime_checkable
class AlternatingObjective(Protocol):
    """An objective that trains a second adapter, distill.student.FAKE, in updates of its own."""

    def turn(self, update: int) -> str:
        """The adapter that update ``update`` (from 0) trains: `STUDENT` or `FAKE`."""


def loss_output(per_sample: Tensor, **report: Tensor) -> LossOutput:
    """A LossOutput from per-sample values [B] and further scalars to report."""
    assert per_sample.ndim == 1, f"per-sample losses must be a vector, got {tuple(per_sample.shape)}"
    loss = per_sample.mean()
    scalars = {"loss": loss, **report}
    return LossOutput(loss, per_sample, {name: value.detach().float() for name, value in scalars.items()})


def named_parameters_of(model: nn.Module, prefixes: Iterable[str]) -> Iterable[tuple[str, nn.Parameter]]:
    """The named parameters of ``model`` under any of the dotted module paths ``prefixes``."""
    dotted = tuple(f"{prefix}." for prefix in prefixes)
    return ((name, parameter) for name, parameter in model.named_parameters() if name.startswith(dotted))


def rows_of(draws: Draws, rows: Sequence[int]) -> Draws:
    """The draws of some rows of a micro-batch."""
    return replace(
        draws, epochs=tuple(draws.epochs[row] for row in rows), indices=tuple(draws.indices[row] for row in rows)
    )


def predict_noise(model: AnyText2, x: Tensor, t: Tensor, conditions: Conditions, control: Control) -> Tensor:
    """The model's eps for ``x`` [B,C,h,w] at ``t`` [B], in at least float32 whatever the model computes in."""
    eps = model.predict_noise(x.to(conditions.image_context.dtype), t, conditions.image_context, control)
    return eps.to(torch.promote_types(eps.dtype, torch.float32))


def require_latent(item: StepInput) -> Tensor:
    """The image's latent [B,C,h,w] as a normal tensor of at least float32."""
    assert item.latent is not None, "this objective needs latents; the trainer must encode them"
    # to() may return the same (inference) tensor, which autograd refuses to save; the clone is always a normal one
    return item.latent.to(torch.promote_types(item.latent.dtype, torch.float32)).clone()


def masked_latent_of(model: AnyText2, item: StepInput) -> Tensor:
    """The masked image's latent [B,z,h,w]: the one the trainer gives, else encoded here without gradient."""
    if item.masked_latent is not None:
        return item.masked_latent.clone()
    with torch.no_grad():
        return model.masked_latents(item.batch)
