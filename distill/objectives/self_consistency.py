"""Self-consistency along the teacher's path: what consistency, phased and trajectory distillation share.

1. z_t = alpha_t z_0 + sigma_t noise; the guided teacher goes from (z_t, t) to (z_s, s), t > s;
2. the prediction is the student's jump from (z_t, t) to a time e <= s; the target is the jump from (z_s, s) to e by
   the student, its moving average or the teacher, without gradient. For s = e the target is z_s itself.

The objectives differ in the times that they draw and in the definition of a jump.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anytext2.core.transfer import to_device
from distill.adapters.roles import EMA, Roles, predict_noise
from distill.diffusion.schedule import NoiseSchedule, solver_grid
from distill.diffusion.solver import ddim_step
from distill.losses.step_input import LossOutput, StepInput, require_latent
from distill.objectives.base import SecondAdapter
from distill.objectives.distillation_loss import DistillationLoss
from distill.objectives.teacher import SOLVERS, GuidedTeacher, StudentConfig

Jump = Callable[[Tensor, Tensor, Tensor, Tensor, NoiseSchedule], Tensor]
"""(z [B,C,h,w], eps, t [B], e [B], schedule) -> the latent at time e, one step from (z, t) with the estimate eps."""


@dataclass
class SelfConsistencyConfig(StudentConfig):
    """Each objective adds ``teacher_interval``: the distance t - s that the teacher covers, in timesteps. With a long
    interval the student needs fewer updates to learn all of its trajectory, but the teacher more than one step to be
    exact.

    ``teacher_steps``: number of equal steps in the interval. ``solver``: ``ddim``, or ``heun`` of the second order at
    twice the UNet calls. ``target_from_teacher``: the target jumps from (z_s, s) with the guided teacher's estimate
    instead of the student's. ``target_ema``: it jumps with the student's moving average (train.ema_decay), a second
    adapter.
    """

    teacher_steps: int = 1
    solver: str = "ddim"
    target_from_teacher: bool = False
    target_ema: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps = {self.teacher_steps}: must be at least 1")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver = '{self.solver}': choose one of {', '.join(SOLVERS)}")
        if self.target_from_teacher and self.target_ema:
            raise ValueError("target_ema = true: with target_from_teacher there is no target of the student's")

    @property
    def second_adapters(self) -> tuple[SecondAdapter, ...]:
        return (SecondAdapter(EMA, trained=False),) if self.target_ema else ()


def check_interval(interval: int) -> None:
    """Raises ValueError for a teacher_interval that is no distance."""
    if interval < 1:
        raise ValueError(f"teacher_interval = {interval}: must be at least 1 timestep (20 is one of 50 solver steps)")


class SelfConsistency:
    """The loss of the three objectives; ``purpose`` is the prefix of their random draws."""

    def __init__(self, config: SelfConsistencyConfig, schedule: NoiseSchedule, purpose: str, jump: Jump) -> None:
        self.config, self.schedule, self.purpose, self._jump = config, schedule, purpose, jump
        self.grid = solver_grid(config.grid, config.solver_steps, schedule)
        self._loss = DistillationLoss(config, schedule)

    def draw(self, item: StepInput, choices: Tensor) -> Tensor:
        """t [B] on the CPU, uniformly one of ``choices``."""
        return choices[item.draws.integers(f"{self.purpose}/t", 0, len(choices))]

    def __call__(self, roles: Roles, item: StepInput, t: Tensor, s: Tensor, e: Tensor) -> LossOutput:
        """The loss for times t > s >= e, each int64 [B] on the CPU. Report: see `DistillationLoss`."""
        latent = require_latent(item)
        schedule = self.schedule.to(latent.device)
        needs_target = not torch.equal(s, e)  # on the host, where the times still are
        t, s, e = (to_device(time, latent.device) for time in (t, s, e))
        noise = item.draws.normal(f"{self.purpose}/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        z_t = schedule.add_noise(latent, noise, t)
        teacher = GuidedTeacher(roles, item, self.config, schedule)
        z_s, teacher_x0 = teacher.solve(z_t, t, s, self.config.teacher_steps, self.config.solver)

        # The student is first: under autocast, weights that are cast inside the target's inference mode would be cached
        # and then enter the student's graph.
        control = teacher.student_control()
        eps = predict_noise(roles.model, z_t, t, teacher.conditions, control)
        target = z_s
        if needs_target and self.config.target_from_teacher:
            target = self._jump(z_s, teacher(z_s, s)[1], s, e, schedule)
        elif needs_target:
            with roles.target():
                # If the target is the student itself, its WriteNet maps are the student's.
                maps = (
                    roles.model.control_maps(teacher.conditions)
                    if self.config.target_ema
                    else tuple(m.detach() for m in control)
                )
                target = self._jump(z_s, predict_noise(roles.model, z_s, s, teacher.conditions, maps), s, e, schedule)
        prediction, x0 = self._jump(z_t, eps, t, e, schedule), schedule.eps_to_x0(z_t, eps, t)
        return self._loss(teacher.term_input(prediction, target.clone(), x0, teacher_x0, latent, t))


def flow_jump(z: Tensor, eps: Tensor, t: Tensor, e: Tensor, schedule: NoiseSchedule) -> Tensor:
    """One DDIM step along the probability-flow ODE: alpha_e x0(z, t) + sigma_e eps(z, t)."""
    return ddim_step(schedule.eps_to_x0(z, eps, t), eps, *schedule.alpha_sigma(e, z))
