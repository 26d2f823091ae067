"""What a loss term is: a small object that adds a value per sample to the loss of any student objective.

An objective compares the student's answer with a target; a term looks at the same two, or decodes them, and says what
else is wrong with them. Every term has its own weight, its own curve (`term/NAME`, before weighting) and the update
from which on it counts.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

from distill.diffusion.schedule import NoiseSchedule
from distill.losses.writenet_attention import WriteAttention

if TYPE_CHECKING:
    from distill.adapters.roles import Roles
    from distill.losses.step import StepInput

Option = TypeVar("Option", bound=Hashable)
Made = TypeVar("Made")


@dataclass(frozen=True)
class TermInput:
    """A student's answer beside what it is to be, for one micro-batch.

    prediction, target: [B,C,h,w], both at the same time of the trajectory; the target carries no gradient.
    x0: the student's clean estimate [B,C,h,w]; wanted_x0: the teacher's guided one, from the same noisy latent.
    clean: the picture's own latent [B,C,h,w]. t: the time [B] the student answered at, of ``schedule``.
    attention, wanted_attention: what the student's WriteNet and the teacher's (conditional) attended to; None where no
    term asks for it.
    """

    prediction: Tensor
    target: Tensor
    x0: Tensor
    wanted_x0: Tensor
    clean: Tensor
    t: Tensor
    schedule: NoiseSchedule
    item: StepInput
    roles: Roles
    attention: WriteAttention | None = None
    wanted_attention: WriteAttention | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def shared(self, make: Callable[[TermInput, Option], Made], option: Option) -> Made:
        """``make(self, option)``, which must be a pure function: computed once, whichever terms ask for it."""
        if (make, option) not in self._made:
            self._made[make, option] = make(self, option)
        made: Made = self._made[make, option]
        return made


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
    """Built as ``Class(config: Class.Config)``; stateless between calls.

    A class may say what it needs: ``needs_attention = True`` for the attention in `TermInput`, ``needs_recognizer =
    True`` for a model whose recogniser can read, ``needs_charset = True`` for the recogniser's characters.
    """

    def __call__(self, compared: TermInput) -> Tensor:
        """The term's values [B], each at least 0, with the gradient of the student's answer."""
