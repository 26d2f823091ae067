"""What a loss term is: a small object that adds a value per sample to the loss of any student objective.

An objective compares the student's answer with a target; a term looks at the same two, or decodes them, and says what
else is wrong with them. Every term has its own weight, its own curve (`term/NAME`, before weighting) and the update
from which on it counts.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from distill.objectives.base import Roles, StepInput


@dataclass(frozen=True)
class Compared:
    """A student's answer beside what it is to be, for one micro-batch.

    prediction, target: [B,C,h,w], both at the same time of the trajectory; the target carries no gradient.
    x0: the student's clean estimate [B,C,h,w]; wanted_x0: the teacher's guided one, from the same noisy latent.
    clean: the picture's own latent [B,C,h,w]. t: the time [B] the student answered at.
    """

    prediction: Tensor
    target: Tensor
    x0: Tensor
    wanted_x0: Tensor
    clean: Tensor
    t: Tensor
    item: StepInput
    roles: Roles


@dataclass
class TermConfig:
    """``weight``: of the term in the loss. ``after``: finished updates before which it does not count."""

    weight: float = 0.0
    after: int = 0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight = {self.weight}: must be > 0 (leave the term out to switch it off)")
        if self.after < 0:
            raise ValueError(f"after = {self.after}: must be at least 0 updates")


class Term(Protocol):
    """Built as ``Class(config: Class.Config)``; stateless between calls."""

    def __call__(self, compared: Compared) -> Tensor:
        """The term's values [B], each at least 0, with the gradient of the student's answer."""
