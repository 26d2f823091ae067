"""Phased consistency distillation (Wang et al. 2024, PCM), for a noise-predicting teacher.

[0, T] is split into phases. Within a phase the student learns to go, in one step of the probability-flow ODE, from any
time t to the phase's lower edge, so that sampling along the edges adds no noise and ends where the teacher's own many
steps from the same noise end. The teacher goes from t to s = max(t - k, edge).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.adapters.roles import Roles
from distill.diffusion.samplers import SamplerName, sampling_timesteps
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step import LossOutput, StepInput
from distill.objectives.base import Trains
from distill.objectives.self_consistency import SelfConsistency, SelfConsistencyConfig, flow_jump


@dataclass
class PhasedConfig(SelfConsistencyConfig):
    """``phases``: as many as steps are to be sampled. ``lcm_step`` never leaves the phase: T takes it to the edge.

    ``edges_only``: t is drawn from the phases' upper edges alone, the only times that sampling in ``phases`` steps asks
    for.
    """

    phases: int = 4
    edges_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.phases <= self.solver_steps:
            raise ValueError(f"phases = {self.phases}: choose 1 to solver_steps = {self.solver_steps}")


class Phased:
    """Phased consistency distillation into the active adapter."""

    Config = PhasedConfig
    trains: Trains = "lora"
    student_sampler: SamplerName = "phased"
    needs_latents = True

    def __init__(self, config: PhasedConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self._consistency = SelfConsistency(config, schedule, "phased", flow_jump)
        self.upper = sampling_timesteps(config.phases, self._consistency.grid).flip(0)
        self.lower = torch.cat([torch.zeros(1, dtype=torch.int64), self.upper[:-1]])

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """See `SelfConsistency`."""
        t = self._consistency.draw(item, self.upper if self.config.edges_only else self._consistency.grid)
        edge = self.lower[torch.searchsorted(self.upper, t)]
        return self._consistency(roles, item, t, torch.maximum(t - self.config.lcm_step, edge), edge)
