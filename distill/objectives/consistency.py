"""Latent consistency distillation (Luo et al. 2023, LCM; LCM-LoRA), for a noise-predicting teacher.

1. t is drawn from the solver's grid, s = max(t - k, 0), z_t = alpha_t z_0 + sigma_t noise;
2. the guided teacher makes one DDIM step (or several) from z_t to z_s;
3. the student at (z_t, t) is to say what it (or its average) says at (z_s, s): both through the boundary-scaled
   consistency function f = c_skip z + c_out x0, both without guidance, the target without gradient.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.objectives.base import LossOutput, Roles, StepInput, Trains, loss_output, predict_noise, require_latent
from distill.objectives.guidance import GuidedConfig, GuidedTeacher, root_mean_square
from distill.sampler import SamplerName
from distill.schedule import NoiseSchedule, boundary_scalings, ddim_timesteps, expand_like


@dataclass
class ConsistencyConfig(GuidedConfig):
    """``solver_steps``: N of the solver's grid. ``lcm_step``: k, how far the teacher steps, in timesteps of the table
    and a multiple of T / N. ``teacher_steps``: equal DDIM steps in which it goes there; a k of many grid cells needs
    fewer updates for the student to know the whole way, but more than one step to be exact.
    ``sigma_data``, ``timestep_scaling``: of the boundary scalings.
    """

    solver_steps: int = 50
    lcm_step: int = 20
    teacher_steps: int = 1
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps = {self.solver_steps}: must be >= 1 (50 is usual)")
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps = {self.teacher_steps}: must be at least 1")
        if self.sigma_data <= 0 or self.timestep_scaling <= 0:
            raise ValueError(
                f"sigma_data = {self.sigma_data}, timestep_scaling = {self.timestep_scaling}: both must be > 0"
            )


class Consistency:
    """Consistency distillation into the active adapter."""

    Config = ConsistencyConfig
    trains: Trains = "lora"
    student_sampler: SamplerName = "consistency"
    needs_latents = True

    def __init__(self, config: ConsistencyConfig, schedule: NoiseSchedule) -> None:
        spacing = schedule.timesteps // config.solver_steps
        if spacing * config.solver_steps != schedule.timesteps:
            raise ValueError(f"solver_steps = {config.solver_steps}: must divide {schedule.timesteps} timesteps")
        if config.lcm_step < spacing or config.lcm_step % spacing:
            raise ValueError(
                f"lcm_step = {config.lcm_step}: must be a positive multiple of {spacing} "
                f"({schedule.timesteps} timesteps / {config.solver_steps} solver steps)"
            )
        self.config = config
        self.schedule = schedule
        self.grid = ddim_timesteps(config.solver_steps, schedule.timesteps)

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: ``teacher_distance``, RMS between the student's f and the teacher's guided x0 at z_t."""
        config, latent = self.config, require_latent(item)
        schedule = self.schedule.to(latent.device)
        index = item.draws.integers("consistency/t", 0, config.solver_steps)
        t = self.grid[index].to(latent.device)
        s = (t - config.lcm_step).clamp_min(0)
        noise = item.draws.normal("consistency/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        z_t = schedule.add_noise(latent, noise, t)

        teacher = GuidedTeacher(roles, item, config, schedule)
        z_s, teacher_x0 = teacher.solve(z_t, t, s, config.teacher_steps)

        # The student goes first: under autocast, weights cast inside the target's inference mode would be cached and
        # then met by the student's graph.
        control = roles.model.write(teacher.conditions)
        eps = predict_noise(roles.model, z_t, t, teacher.conditions, control)
        prediction = self._f(z_t, eps, t, schedule)
        with roles.target():
            # The target is the student itself, so the WriteNet has nothing new to say to it.
            eps_s = predict_noise(roles.model, z_s, s, teacher.conditions, tuple(m.detach() for m in control))
            target = self._f(z_s, eps_s, s, schedule)

        per_sample = config.distance(prediction, target.clone())
        return loss_output(per_sample, teacher_distance=root_mean_square(prediction - teacher_x0))

    def _f(self, z: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The consistency function [B,C,h,w] of the model's ``eps`` at (z, t)."""
        c_skip, c_out = boundary_scalings(t, self.config.sigma_data, self.config.timestep_scaling)
        return expand_like(c_skip, z) * z + expand_like(c_out, z) * schedule.eps_to_x0(z, eps, t)
