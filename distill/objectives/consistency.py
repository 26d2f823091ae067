"""Latent consistency distillation (Luo et al. 2023, LCM; LCM-LoRA), for a noise-predicting teacher.

A jump is the consistency function f = c_skip z + c_out x0, which estimates the clean picture and is the identity at
t = 0 (Song et al. 2023, eq. 5). The teacher's solver goes from t to s, the highest time of the grid (or 0) that is at
least teacher_interval below t: max(t - teacher_interval, 0) on LCM's own grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.adapters.roles import Roles
from distill.diffusion.schedule import NoiseSchedule, boundary_scalings, expand_like
from distill.losses.step_input import LossOutput, StepInput
from distill.objectives.base import Objective, StudentSpec
from distill.objectives.self_consistency import SelfConsistency, SelfConsistencyConfig, check_interval


@dataclass
class ConsistencyConfig(SelfConsistencyConfig):
    """``teacher_interval``: a number of timesteps. ``sigma_data``, ``timestep_scaling``: of the boundary scalings."""

    teacher_interval: int = 20
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval(self.teacher_interval)
        if self.sigma_data <= 0 or self.timestep_scaling <= 0:
            raise ValueError(
                f"sigma_data = {self.sigma_data}, timestep_scaling = {self.timestep_scaling}: both must be > 0"
            )

    @property
    def student(self) -> StudentSpec:
        return self.sampled_with("consistency", None, self.sigma_data, self.timestep_scaling)

    def check_grid(self, timesteps: int) -> None:
        """LCM's own grid has no rounding: raises ValueError if solver_steps or teacher_interval would need some."""
        if self.grid != "uniform":
            return
        spacing = timesteps // self.solver_steps
        if spacing * self.solver_steps != timesteps:
            raise ValueError(f"solver_steps = {self.solver_steps}: must divide {timesteps} timesteps")
        if self.teacher_interval < spacing or self.teacher_interval % spacing:
            raise ValueError(
                f"teacher_interval = {self.teacher_interval}: must be a positive multiple of {spacing} "
                f"({timesteps} timesteps / {self.solver_steps} solver steps)"
            )


class Consistency(Objective):
    """Consistency distillation into the active adapter."""

    Config = ConsistencyConfig
    config: ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, schedule: NoiseSchedule) -> None:
        config.check_grid(schedule.timesteps)
        self.config = config
        self._consistency = SelfConsistency(config, schedule, "consistency", self._jump)
        self.floors = torch.cat([torch.zeros(1, dtype=torch.int64), self._consistency.grid])

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """See `SelfConsistency`."""
        t = self._consistency.draw(item, self._consistency.grid)
        below = torch.searchsorted(self.floors, (t - self.config.teacher_interval).clamp_min(0), right=True) - 1
        return self._consistency(roles, item, t, self.floors[below], torch.zeros_like(t))

    def _jump(self, z: Tensor, eps: Tensor, t: Tensor, e: Tensor, schedule: NoiseSchedule) -> Tensor:
        """f at (z, t) [B,C,h,w]; e is 0 everywhere."""
        c_skip, c_out = boundary_scalings(t, self.config.sigma_data, self.config.timestep_scaling)
        return expand_like(c_skip, z) * z + expand_like(c_out, z) * schedule.eps_to_x0(z, eps, t)
