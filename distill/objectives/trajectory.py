"""Trajectory consistency distillation (Zheng et al. 2024, TCD; Kim et al. 2024, CTM), for a noise-predicting teacher.

The student learns steps of the probability-flow ODE from any time t to any time e below it, so that sampling may use
any number of steps and add any share of noise between them (gamma of `sample_trajectory`). The teacher's solver goes
from t to s = max(t - teacher_interval, 0); e <= s is drawn from the grid and 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.adapters.roles import Roles
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step_input import LossOutput, StepInput
from distill.objectives.base import Objective, StudentSpec
from distill.objectives.self_consistency import SelfConsistency, SelfConsistencyConfig, check_interval, flow_jump


@dataclass
class TrajectoryConfig(SelfConsistencyConfig):
    """``teacher_interval``: a number of timesteps."""

    teacher_interval: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval(self.teacher_interval)

    @property
    def student(self) -> StudentSpec:
        return self.sampled_with("trajectory")


class Trajectory(Objective):
    """Trajectory consistency distillation into the active adapter."""

    Config = TrajectoryConfig
    config: TrajectoryConfig

    def __init__(self, config: TrajectoryConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self._consistency = SelfConsistency(config, schedule, "trajectory", flow_jump)
        self.ends = torch.cat([torch.zeros(1, dtype=torch.int64), self._consistency.grid])

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """See `SelfConsistency`."""
        t = self._consistency.draw(item, self._consistency.grid)
        s = (t - self.config.teacher_interval).clamp_min(0)
        choices = torch.searchsorted(self.ends, s, right=True)  # the number of ends e <= s
        share = item.draws.uniform("trajectory/end", 0.0, 1.0).double()
        end = self.ends[(share * choices).long().clamp_max(choices - 1)]
        return self._consistency(roles, item, t, s, end)
