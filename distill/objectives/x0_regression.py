"""One-step regression: the student's unguided x0 is to equal the teacher's guided x0 at the same noise and time.

The simplest way to distil guidance, and a baseline: at high noise the teacher's x0 is the mean of all pictures that
fit, so a student of few steps learns blur there. ``consistency`` does not have that fault.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.adapters.roles import Roles, predict_noise
from distill.diffusion.samplers import SamplerName
from distill.diffusion.schedule import NoiseSchedule, solver_grid
from distill.losses.step import LossOutput, StepInput, require_latent
from distill.losses.terms import TermInput
from distill.losses.writenet_attention import write
from distill.objectives.base import Trains
from distill.objectives.distillation_loss import Matching
from distill.objectives.teacher import GridConfig, GuidedTeacher


@dataclass
class X0RegressionConfig(GridConfig):
    """The times t are drawn from the grid, uniformly."""

    w_min: float = 6.5
    w_max: float = 6.5
    loss: str = "l2"


class X0Regression:
    """Regression of x0 into the active adapter."""

    Config = X0RegressionConfig
    trains: Trains = "lora"
    student_sampler: SamplerName = "consistency"
    needs_latents = True

    def __init__(self, config: X0RegressionConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self.schedule = schedule
        self._matching = Matching(config, schedule)
        self.grid = solver_grid(config.grid, config.solver_steps, schedule)

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: see `Matching`."""
        latent = require_latent(item)
        schedule = self.schedule.to(latent.device)
        t = self.grid[item.draws.integers("x0_regression/t", 0, len(self.grid))].to(latent.device)
        noise = item.draws.normal("x0_regression/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        noisy = schedule.add_noise(latent, noise, t)
        teacher = GuidedTeacher(roles, item, self.config, schedule)
        wanted, _ = teacher(noisy, t)
        control, attention = write(roles.model, teacher.conditions, attending=teacher.attention is not None)
        x0 = schedule.eps_to_x0(noisy, predict_noise(roles.model, noisy, t, teacher.conditions, control), t)
        return self._matching(
            TermInput(x0, wanted, x0, wanted, latent, t, schedule, item, roles, attention, teacher.attention)
        )
