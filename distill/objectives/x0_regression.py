"""One-step regression: the target of the student's unguided x0 is the teacher's guided x0 at the same noise and time.

The simplest way to distil guidance, and a baseline: at high noise the teacher's x0 is the mean of all pictures that
fit the conditions, so a student of few steps learns blur there. ``consistency`` does not have that fault.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytext2.core.transfer import to_device
from distill.adapters.roles import Roles, predict_noise
from distill.diffusion.schedule import NoiseSchedule, solver_grid
from distill.losses.step_input import LossOutput, StepInput, require_latent
from distill.objectives.base import Objective, StudentSpec
from distill.objectives.distillation_loss import DistillationLoss
from distill.objectives.teacher import GuidedTeacher, StudentConfig


@dataclass
class X0RegressionConfig(StudentConfig):
    """The times t are drawn from the grid, uniformly."""

    w_min: float = 6.5
    w_max: float = 6.5
    loss: str = "l2"

    @property
    def student(self) -> StudentSpec:
        return self.sampled_with("consistency")


class X0Regression(Objective):
    """Regression of x0 into the active adapter."""

    Config = X0RegressionConfig
    config: X0RegressionConfig

    def __init__(self, config: X0RegressionConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self.schedule = schedule
        self._loss = DistillationLoss(config, schedule)
        self.grid = solver_grid(config.grid, config.solver_steps, schedule)

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: see `DistillationLoss`."""
        latent = require_latent(item)
        schedule = self.schedule.to(latent.device)
        t = to_device(self.grid[item.draws.integers("x0_regression/t", 0, len(self.grid))], latent.device)
        noise = item.draws.normal("x0_regression/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        noisy = schedule.add_noise(latent, noise, t)
        teacher = GuidedTeacher(roles, item, self.config, schedule)
        target, _ = teacher(noisy, t)
        control = teacher.student_control()
        x0 = schedule.eps_to_x0(noisy, predict_noise(roles.model, noisy, t, teacher.conditions, control), t)
        return self._loss(teacher.term_input(x0, target, x0, target, latent, t))
