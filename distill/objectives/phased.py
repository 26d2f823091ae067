"""Phased consistency distillation (Wang et al. 2024, PCM), for a noise-predicting teacher.

[0, T] is split into phases. Within a phase the student learns one step of the probability-flow ODE from any time t to
the phase's lower edge. Sampling along the edges then adds no noise and ends where the teacher's many steps end that
start from the same noise. The teacher's solver goes from t to s = max(t - teacher_interval, edge).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.adapters.roles import Roles
from distill.diffusion.samplers import sampling_timesteps
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step_input import LossOutput, StepInput
from distill.objectives.base import Objective, StudentSpec
from distill.objectives.self_consistency import SelfConsistency, SelfConsistencyConfig, check_interval, flow_jump

PHASE = "phase"


@dataclass
class PhasedConfig(SelfConsistencyConfig):
    """``teacher_interval``: a number of timesteps, which ends at the phase's edge at the latest, or `phase`: always to
    the edge. ``phases``: the number of steps that the student is for. ``edges_only``: t is drawn from the phases' upper
    edges alone, the only times that sampling in ``phases`` steps uses.
    """

    teacher_interval: int | str = 20
    phases: int = 4
    edges_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.teacher_interval, int):
            check_interval(self.teacher_interval)
        elif self.teacher_interval != PHASE:
            raise ValueError(
                f"teacher_interval = '{self.teacher_interval}': choose a number of timesteps (20 is one of 50 solver "
                f"steps) or '{PHASE}', a whole phase"
            )
        if not 1 <= self.phases <= self.solver_steps:
            raise ValueError(f"phases = {self.phases}: choose 1 to solver_steps = {self.solver_steps}")

    @property
    def student(self) -> StudentSpec:
        return self.sampled_with("phased", self.phases)


class Phased(Objective):
    """Phased consistency distillation into the active adapter."""

    Config = PhasedConfig
    config: PhasedConfig

    def __init__(self, config: PhasedConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self._consistency = SelfConsistency(config, schedule, "phased", flow_jump)
        self.upper = sampling_timesteps(config.phases, self._consistency.grid).flip(0)
        self.lower = torch.cat([torch.zeros(1, dtype=torch.int64), self.upper[:-1]])

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """See `SelfConsistency`."""
        t = self._consistency.draw(item, self.upper if self.config.edges_only else self._consistency.grid)
        edge = self.lower[torch.searchsorted(self.upper, t)]
        interval = self.config.teacher_interval
        s = torch.maximum(t - interval, edge) if isinstance(interval, int) else edge
        return self._consistency(roles, item, t, s, edge)
