"""What an objective is: a small object that turns one micro-batch into (loss, report), and nothing else.

The trainer knows no objective and an objective knows no engine. A new idea is a new file here and one entry in
``OBJECTIVES`` (distill/objectives/__init__.py).

Shape legend: B batch, C channels, H/W pixels, h/w latent cells, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import nn

from distill.adapters.roles import Roles
from distill.losses.step import LossOutput, StepInput

if TYPE_CHECKING:
    from anytext2.model.anytext2 import AnyText2

Trains = Literal["lora", "teacher", "vae", "recognizer"]


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
        """The adapter that update ``update`` (from 0) trains: `STUDENT` or `FAKE_SCORE`."""


def named_parameters_of(model: nn.Module, prefixes: Iterable[str]) -> Iterable[tuple[str, nn.Parameter]]:
    """The named parameters of ``model`` under any of the dotted module paths ``prefixes``."""
    dotted = tuple(f"{prefix}." for prefix in prefixes)
    return ((name, parameter) for name, parameter in model.named_parameters() if name.startswith(dotted))
