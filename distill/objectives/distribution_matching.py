"""Distribution matching distillation on one shared base (Yin et al. 2024, DMD and DMD2; Luo et al. 2025, TDM).

The student makes a clean estimate x0 at a point of its own trajectory. With noise of a random time, it gets two scores:
the guided teacher's (real) and that of a model of the student's own pictures (fake). The gradient of x0 is their
difference (DMD, eq. 7). The fake score is one more adapter on the base weights, trained on the student's pictures in
the updates between the student's.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytext2.core.batch import Conditions, Control
from anytext2.core.transfer import to_device
from distill.adapters.roles import FAKE_SCORE, STUDENT, Roles, predict_noise
from distill.diffusion.samplers import sampling_timesteps
from distill.diffusion.schedule import NoiseSchedule, expand_like, solver_grid
from distill.diffusion.solver import ddim_step
from distill.losses import distances
from distill.losses.step_input import LossOutput, StepInput, loss_output, require_latent
from distill.objectives.base import Objective, SecondAdapter, StudentSpec
from distill.objectives.distillation_loss import DistillationLoss
from distill.objectives.teacher import GuidedTeacher, StudentConfig

_LEAST, _MOST = 0.02, 0.98
"""Fractions of the schedule between which the scores are compared (DMD, section 3.2)."""


@dataclass
class DistributionMatchingConfig(StudentConfig):
    """``steps``: the number of steps that the student is for. ``fake_updates``: updates of the fake score for each
    update of the student (DMD2: 5).

    ``loss`` must stay ``l2``: its gradient is the difference of the scores. ``min_snr_gamma`` must stay 0: the loss is
    none of x0 at the sample's own time.
    """

    loss: str = "l2"
    steps: int = 4
    fake_updates: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "l2":
            raise ValueError(f"loss = '{self.loss}': distribution matching knows l2 only")
        if self.min_snr_gamma:
            raise ValueError(f"min_snr_gamma = {self.min_snr_gamma}: distribution matching compares scores; leave it 0")
        if self.fake_updates < 1:
            raise ValueError(f"fake_updates = {self.fake_updates}: must be at least 1 (5 is usual)")
        if not 1 <= self.steps <= self.solver_steps:
            raise ValueError(f"steps = {self.steps}: choose 1 to solver_steps = {self.solver_steps}")

    @property
    def student(self) -> StudentSpec:
        return self.sampled_with("phased", self.steps)

    @property
    def second_adapters(self) -> tuple[SecondAdapter, ...]:
        return (SecondAdapter(FAKE_SCORE, trained=True),)


class DistributionMatching(Objective):
    """Distribution matching into the student's adapter, with a second adapter for the fake score."""

    Config = DistributionMatchingConfig
    config: DistributionMatchingConfig

    def __init__(self, config: DistributionMatchingConfig, schedule: NoiseSchedule) -> None:
        self.config, self.schedule = config, schedule
        self.times = sampling_timesteps(config.steps, solver_grid(config.grid, config.solver_steps, schedule))
        self._loss = DistillationLoss(config, schedule)

    def trained_adapter(self, update: int) -> str:
        """The fake score's updates come first, so that it is trained before the student uses it."""
        return STUDENT if update % (self.config.fake_updates + 1) == self.config.fake_updates else FAKE_SCORE

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: `DistillationLoss`'s and ``loss_student`` in the student's updates, ``loss_fake`` in the others."""
        latent = require_latent(item)
        schedule = self.schedule.to(latent.device)
        teacher = GuidedTeacher(roles, item, self.config, schedule)
        if self.trained_adapter(item.update) == STUDENT:
            return self._student_loss(roles, item, teacher, latent, schedule)
        with torch.no_grad():
            control = roles.model.control_maps(teacher.conditions)
            x0, _ = self._generate(roles, item, teacher.conditions, control, latent, schedule)
        return self._fake_loss(roles, item, teacher.conditions, x0, schedule)

    def _generate(
        self,
        roles: Roles,
        item: StepInput,
        conditions: Conditions,
        control: Control,
        latent: Tensor,
        schedule: NoiseSchedule,
    ) -> tuple[Tensor, Tensor]:
        """The student's x0 [B,C,h,w] at a time [B] of its own trajectory, drawn for each sample.

        The steps that lead there are the student's, from pure noise, without gradient (DMD2, section 4.5).
        """
        stage = item.draws.integers("distribution_matching/stage", 0, self.config.steps)
        x = item.draws.normal("distribution_matching/start", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        with torch.no_grad():
            maps = tuple(level.detach() for level in control)
            for step in range(int(stage.max())):
                t, after = (to_device(self.times[number], x.device).expand(len(stage)) for number in (step, step + 1))
                eps = predict_noise(roles.model, x, t, conditions, maps)
                moved = ddim_step(schedule.eps_to_x0(x, eps, t), eps, *schedule.alpha_sigma(after, x))
                x = torch.where(to_device(stage > step, x.device).reshape(-1, 1, 1, 1), moved, x)
        t = to_device(self.times[stage], x.device)
        return schedule.eps_to_x0(x, predict_noise(roles.model, x, t, conditions, control), t), t

    def _student_loss(
        self, roles: Roles, item: StepInput, teacher: GuidedTeacher, latent: Tensor, schedule: NoiseSchedule
    ) -> LossOutput:
        control = teacher.student_control()
        x0, stage_t = self._generate(roles, item, teacher.conditions, control, latent, schedule)
        t = to_device(self._draw_time(item, "distribution_matching/score_t", _LEAST, _MOST), x0.device)
        noise = item.draws.normal("distribution_matching/score_noise", x0.shape[1:], device=x0.device, dtype=x0.dtype)
        noisy = schedule.add_noise(x0.detach(), noise, t)
        real, _ = teacher(noisy, t)
        with torch.no_grad(), roles.using(FAKE_SCORE):
            eps = predict_noise(roles.model, noisy, t, teacher.conditions, roles.model.control_maps(teacher.conditions))
            fake = schedule.eps_to_x0(noisy, eps, t)
            # DMD, eq. 8: the scale makes the gradient's size independent of the noise
            scale = (x0.detach() - real).abs().flatten(1).mean(dim=1).clamp_min(1e-6)
            target = x0.detach() - (fake - real) / expand_like(scale, x0)
        output = self._loss(teacher.term_input(x0, target, x0, real, latent, stage_t))
        return loss_output(output.per_sample, **{**output.report, "loss_student": output.loss})

    def _fake_loss(
        self, roles: Roles, item: StepInput, conditions: Conditions, x0: Tensor, schedule: NoiseSchedule
    ) -> LossOutput:
        """Noise prediction on the student's pictures."""
        t = to_device(self._draw_time(item, "distribution_matching/fake_t", 0.0, 1.0), x0.device)
        noise = item.draws.normal("distribution_matching/fake_noise", x0.shape[1:], device=x0.device, dtype=x0.dtype)
        with roles.using(FAKE_SCORE):
            control = roles.model.control_maps(conditions)
            eps = predict_noise(roles.model, schedule.add_noise(x0, noise, t), t, conditions, control)
        per_sample = distances.l2(eps, noise)
        return loss_output(per_sample, loss_fake=per_sample.mean())

    def _draw_time(self, item: StepInput, purpose: str, low: float, high: float) -> Tensor:
        """int64 [B] on the CPU, uniform between two fractions of the schedule."""
        T = self.schedule.timesteps
        return item.draws.integers(purpose, int(low * T), int(high * T))
