"""The interface of a loss term: it adds a value per sample to the loss of any student objective.

An objective measures the distance of the student's prediction to a target. A term measures another property of the same
two latents, or of what they decode to. Every term has its own weight, its own curve (`term/NAME`, before weighting) and
the update after which it counts.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from distill.diffusion.schedule import NoiseSchedule
from distill.losses.writenet_attention import AttentionRecorder

if TYPE_CHECKING:
    from distill.adapters.roles import Roles
    from distill.losses.step_input import StepInput

Option = TypeVar("Option", bound=Hashable)
Made = TypeVar("Made")


@dataclass(frozen=True)
class TermInput:
    """Prediction and target of one micro-batch, and what they were computed from.

    prediction, target: [B,C,h,w], both at the same time of the trajectory; the target carries no gradient.
    x0: the student's clean estimate [B,C,h,w]; teacher_x0: the guided teacher's, from the same noisy latent.
    clean: the picture's own latent [B,C,h,w]. t: the time [B] of the student's input, an index of ``schedule``.
    attention: of the WriteNet's calls for the roles "student" and "teacher" (conditional), if a term needs it.
    """

    prediction: Tensor
    target: Tensor
    x0: Tensor
    teacher_x0: Tensor
    clean: Tensor
    t: Tensor
    schedule: NoiseSchedule
    item: StepInput
    roles: Roles
    attention: AttentionRecorder = field(default_factory=AttentionRecorder)
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def shared(self, make: Callable[[TermInput, Option], Made], option: Option) -> Made:
        """``make(self, option)``, which must be a pure function; computed once, however many terms call it."""
        if (make, option) not in self._made:
            self._made[make, option] = make(self, option)
        made: Made = self._made[make, option]
        return made


@dataclass
class TermConfig:
    """``weight``: of the term in the loss. ``after``: the number of finished updates from which the term counts."""

    weight: float = 0.0
    after: int = 0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight = {self.weight}: must be > 0 (leave the term out to switch it off)")
        if self.after < 0:
            raise ValueError(f"after = {self.after}: must be at least 0 updates")


class Term(ABC):
    """Base class of loss terms; stateless between calls. Built as ``Class(config)`` with its own ``Config``."""

    Config: ClassVar[type[TermConfig]] = TermConfig
    needs_recognizer: ClassVar[bool] = False
    """The model's recogniser must be trained. Such a student must not be scored by it."""
    needs_charset: ClassVar[bool] = False
    """The characters of the recogniser's classes must be known."""
    needs_attention: ClassVar[bool] = False
    """`TermInput.attention` must be recorded."""

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def __call__(self, given: TermInput) -> Tensor:
        """The term's values [B], each at least 0, with the gradient of the student's prediction."""
