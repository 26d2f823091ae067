"""Trajectory consistency distillation (Zheng et al. 2024, TCD; Kim et al. 2024, CTM), for a noise-predicting teacher.

The student learns steps of the probability-flow ODE from any time t to any later one, so that sampling may use any
number of steps and put back any share of noise between them (`sample_trajectory`'s gamma). The teacher goes from t to
s = max(t - k, 0); the end e of the student's step is drawn from the grid and 0, not above s.
"""

from __future__ import annotations

import torch

from distill.adapters.roles import Roles
from distill.diffusion.samplers import SamplerName
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step import LossOutput, StepInput
from distill.objectives.base import Trains
from distill.objectives.self_consistency import SelfConsistency, SelfConsistencyConfig, flow_jump


class Trajectory:
    """Trajectory consistency distillation into the active adapter."""

    Config = SelfConsistencyConfig
    trains: Trains = "lora"
    student_sampler: SamplerName = "trajectory"
    needs_latents = True

    def __init__(self, config: SelfConsistencyConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self._consistency = SelfConsistency(config, schedule, "trajectory", flow_jump)
        self.ends = torch.cat([torch.zeros(1, dtype=torch.int64), self._consistency.grid])

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """See `SelfConsistency`."""
        t = self._consistency.draw(item, self._consistency.grid)
        s = (t - self.config.lcm_step).clamp_min(0)
        choices = torch.searchsorted(self.ends, s, right=True)  # how many ends are not above s
        share = item.draws.uniform("trajectory/end", 0.0, 1.0).double()
        end = self.ends[(share * choices).long().clamp_max(choices - 1)]
        return self._consistency(roles, item, t, s, end)
