"""Input and output of an objective for one micro-batch.

Shape legend: B batch, C channels, z latent channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anytext2.core.batch import Batch, Contexts
from anytext2.core.rng import Draws
from anytext2.model.anytext2 import AnyText2


@dataclass(frozen=True)
class StepInput:
    """One micro-batch on the device, with its source of randomness.

    ``latent`` [B,C,h,w] is the scaled latent of the image and ``masked_latent`` that of the masked image; both are None
    for objectives that need no latents. Either may be an inference tensor. ``update``: finished optimizer updates.
    ``negative``: `AnyText2.negative_contexts` of the objective's negative prompt; None: it is encoded where needed.
    """

    batch: Batch
    draws: Draws
    latent: Tensor | None = None
    masked_latent: Tensor | None = None
    update: int = 0
    negative: Contexts | None = None


@dataclass(frozen=True)
class LossOutput:
    """``loss`` is the mean of ``per_sample`` [B]; ``report`` holds detached scalars that stay on the device."""

    loss: Tensor
    per_sample: Tensor
    report: dict[str, Tensor]


def loss_output(per_sample: Tensor, **report: Tensor) -> LossOutput:
    """A LossOutput from per-sample values [B] and further scalars to report."""
    assert per_sample.ndim == 1, f"per-sample losses must be a vector, got {tuple(per_sample.shape)}"
    loss = per_sample.mean()
    scalars = {"loss": loss, **report}
    return LossOutput(loss, per_sample, {name: value.detach().float() for name, value in scalars.items()})


def rows_of(draws: Draws, rows: Sequence[int]) -> Draws:
    """The draws of some rows of a micro-batch."""
    return replace(
        draws, epochs=tuple(draws.epochs[row] for row in rows), indices=tuple(draws.indices[row] for row in rows)
    )


def require_latent(item: StepInput) -> Tensor:
    """The image's latent [B,C,h,w] as a normal tensor of at least float32."""
    assert item.latent is not None, "this objective needs latents; the trainer must encode them"
    # to() may return the same inference tensor, which autograd refuses to save; its clone is a normal tensor.
    return item.latent.to(torch.promote_types(item.latent.dtype, torch.float32)).clone()


def masked_latent_of(model: AnyText2, item: StepInput) -> Tensor:
    """The masked image's latent [B,z,h,w]: from the input, else encoded here without gradient."""
    if item.masked_latent is not None:
        return item.masked_latent.clone()
    with torch.no_grad():
        return model.masked_latents(item.batch)
