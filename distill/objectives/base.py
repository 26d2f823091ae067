"""The interface of an objective: it turns one micro-batch into (loss, report), and declares what it needs for that.

The trainer knows no objective and an objective knows no engine. A new one is a new file here and one entry in
``OBJECTIVES`` (distill/objectives/__init__.py). What follows from a recipe alone is declared by its `ObjectiveConfig`;
what the trainer asks in every update, by the `Objective`.

Shape legend: B batch, C channels, H/W pixels, h/w latent cells, T tokens, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from distill.adapters.roles import STUDENT, Roles
from distill.diffusion.samplers import LCM_OPTIONS, TEACHER_SAMPLER, SamplerOptions
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step_input import LossOutput, StepInput
from distill.losses.terms import TermConfig

if TYPE_CHECKING:
    from anytext2.model.anytext2 import AnyText2

Trains = Literal["lora", "teacher", "vae", "recognizer"]


@dataclass(frozen=True)
class StudentSpec:
    """How the student of an objective is sampled, and what it was trained against.

    sampler: a name in `SAMPLERS`, with its options. phases: the number of steps that the student is trained for; None:
    any number that its grid has. guidance: range of the teacher's guidance scale that is distilled. terms: its loss
    terms by name.
    """

    sampler: str
    options: SamplerOptions = LCM_OPTIONS
    phases: int | None = None
    guidance: tuple[float, float] = (0.0, math.inf)
    terms: Mapping[str, TermConfig] = field(default_factory=dict)

    def require_steps(self, steps: int, where: str, sampler: str = "") -> None:
        """Raises ValueError, which names ``where``, if the student cannot be sampled in so many steps.

        sampler: empty for the student's own.
        """
        grid = self.options.solver_steps
        if steps > grid and (sampler or self.sampler) != TEACHER_SAMPLER:
            raise ValueError(f"{where}={steps}: the student's grid has {grid} times (objective.solver_steps)")
        phases = self.phases
        if phases is not None and sampler in ("", self.sampler) and max(phases, steps) % min(phases, steps):
            fitting = [n for n in range(1, 2 * phases + 1) if max(phases, n) % min(phases, n) == 0]
            raise ValueError(
                f"{where}={steps}: does not divide the student's {phases} phases (objective.phases or objective.steps) "
                f"and is no multiple of them; {', '.join(map(str, fitting))} ... do"
            )

    def supported_steps(self, steps: Sequence[int]) -> list[int]:
        """Those of ``steps`` that `require_steps` accepts."""
        return [n for n in steps if self._supports(n)]

    def default_steps(self, evaluated: int) -> int:
        """The number of steps if none is given: that of the evaluation if it is supported, else one for each phase."""
        return evaluated if self.phases is None or self._supports(evaluated) else self.phases

    def _supports(self, steps: int) -> bool:
        try:
            self.require_steps(steps, "steps")
        except ValueError:
            return False
        return True


LCM_STUDENT = StudentSpec("consistency")
"""How an adapter is sampled whose recipe trains no student: as an LCM-LoRA, after any guidance scale."""


@dataclass(frozen=True)
class SecondAdapter:
    """An adapter beside the student's on the same base weights: trained by its own gradients, or a frozen average."""

    name: str
    trained: bool


@dataclass
class ObjectiveConfig:
    """Base of every objective's options. An objective of full weights (teacher, VAE, recogniser) trains no student."""

    @property
    def student(self) -> StudentSpec | None:
        """How the student is sampled; None if the objective trains none."""
        return None

    @property
    def second_adapters(self) -> tuple[SecondAdapter, ...]:
        """The adapters that the objective needs beside the student's."""
        return ()


class Objective(ABC):
    """Built as ``Class(config, schedule)`` with its own ``Config``; stateless between calls.

    trains: the student's LoRA, or the base weights of the teacher, the VAE or the recogniser. needs_latents: whether
    `StepInput` must hold latents. config: the options that it was built with.
    """

    Config: ClassVar[type[ObjectiveConfig]]
    trains: ClassVar[Trains] = "lora"
    needs_latents: ClassVar[bool] = True
    config: ObjectiveConfig

    @abstractmethod
    def __init__(self, config: Any, schedule: NoiseSchedule) -> None: ...

    @abstractmethod
    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """The loss of one micro-batch. Samples weigh equally, so the mean over micro-batches is the batch's mean."""

    def trained_adapter(self, update: int) -> str:
        """The adapter that update ``update`` (from 0) trains."""
        return STUDENT


class FullWeightObjective(Objective):
    """An objective that trains base weights (teacher, VAE, recogniser) instead of a LoRA."""

    @abstractmethod
    def trainable(self, model: AnyText2) -> Iterable[tuple[str, nn.Parameter]]:
        """(name, parameter) of what it trains; everything else is to be frozen by the caller."""


def named_parameters_of(model: nn.Module, prefixes: Iterable[str]) -> Iterable[tuple[str, nn.Parameter]]:
    """The named parameters of ``model`` under any of the dotted module paths ``prefixes``."""
    dotted = tuple(f"{prefix}." for prefix in prefixes)
    return ((name, parameter) for name, parameter in model.named_parameters() if name.startswith(dotted))
