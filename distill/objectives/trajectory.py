"""Trajectory consistency distillation (Zheng et al. 2024, TCD; Kim et al. 2024, CTM), for a noise-predicting teacher.

The student learns steps of the probability-flow ODE from any time t to any later one, so that sampling may use any
number of steps and put back any share of noise between them (`sample_trajectory`'s gamma). The teacher goes from t to
s = max(t - k, 0); the end e of the student's step is drawn from the solver's grid and 0, not above s.
"""

from __future__ import annotations

import torch

from distill.objectives.base import LossOutput, Roles, StepInput, Trains
from distill.objectives.flow import FlowConfig, flow_loss
from distill.sampler import SamplerName
from distill.schedule import NoiseSchedule, ddim_timesteps


class Trajectory:
    """Trajectory consistency distillation into the active adapter."""

    Config = FlowConfig
    trains: Trains = "lora"
    student_sampler: SamplerName = "trajectory"
    needs_latents = True

    def __init__(self, config: FlowConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self.schedule = schedule
        self.grid = ddim_timesteps(config.solver_steps, schedule.timesteps)
        self.ends = torch.cat([torch.zeros(1, dtype=torch.int64), self.grid])

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """See `flow_loss`."""
        t = self.grid[item.draws.integers("trajectory/t", 0, len(self.grid))]
        s = (t - self.config.lcm_step).clamp_min(0)
        choices = torch.searchsorted(self.ends, s, right=True)  # how many ends are not above s
        share = item.draws.uniform("trajectory/end", 0.0, 1.0).double()
        end = self.ends[(share * choices).long().clamp_max(choices - 1)]
        return flow_loss(roles, item, self.config, self.schedule, "trajectory", (t, s, end))
