"""Phased consistency distillation (Wang et al. 2024, PCM), for a noise-predicting teacher.

[0, T] is split into phases. Within a phase the student learns to go, in one step of the probability-flow ODE, from any
time to the phase's lower edge, so that sampling along the edges adds no noise and ends where the teacher's own many
steps from the same noise end.

1. t is drawn from the solver's grid (or from the phases' upper edges), e is its phase's lower edge, s = max(t - k, e);
2. the guided teacher goes from z_t to z_s in one DDIM step or several;
3. the student's step from (z_t, t) to e is to end where its (or its average's) step from (z_s, s) to e ends, without
   gradient there. At s = e that is z_s itself, so no boundary scalings are needed.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.objectives.base import LossOutput, Roles, StepInput, Trains, loss_output, predict_noise, require_latent
from distill.objectives.guidance import GuidedConfig, GuidedTeacher, root_mean_square
from distill.sampler import SamplerName, consistency_timesteps
from distill.schedule import NoiseSchedule, ddim_timesteps
from distill.solver import ddim_step


@dataclass
class PhasedConfig(GuidedConfig):
    """``phases``: as many as steps are to be sampled. ``solver_steps``: N of the solver's grid.

    ``lcm_step``: k, how far the teacher goes, in timesteps; it never leaves the phase, so T takes it to the edge.
    ``teacher_steps``: equal DDIM steps in which it goes there. ``edges_only``: t is drawn from the phases' upper edges
    alone, the only times that sampling in ``phases`` steps asks for.
    """

    phases: int = 4
    solver_steps: int = 50
    lcm_step: int = 20
    teacher_steps: int = 1
    edges_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.phases <= self.solver_steps:
            raise ValueError(f"phases = {self.phases}: choose 1 to solver_steps = {self.solver_steps}")
        if self.lcm_step < 1:
            raise ValueError(f"lcm_step = {self.lcm_step}: must be at least 1 timestep (20 is one of 50 solver steps)")
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps = {self.teacher_steps}: must be at least 1")


class Phased:
    """Phased consistency distillation into the active adapter."""

    Config = PhasedConfig
    trains: Trains = "lora"
    student_sampler: SamplerName = "phased"
    needs_latents = True

    def __init__(self, config: PhasedConfig, schedule: NoiseSchedule) -> None:
        if config.solver_steps > schedule.timesteps:
            raise ValueError(f"solver_steps = {config.solver_steps}: at most {schedule.timesteps} timesteps")
        self.config = config
        self.schedule = schedule
        self.upper = consistency_timesteps(config.phases, schedule.timesteps, config.solver_steps).flip(0)
        self.lower = torch.cat([torch.zeros(1, dtype=torch.int64), self.upper[:-1]])
        self.grid = self.upper if config.edges_only else ddim_timesteps(config.solver_steps, schedule.timesteps)

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: ``teacher_distance``, RMS between the student's and the teacher's guided x0 at z_t."""
        config, latent = self.config, require_latent(item)
        schedule = self.schedule.to(latent.device)
        t = self.grid[item.draws.integers("phased/t", 0, len(self.grid))]
        edge = self.lower[torch.searchsorted(self.upper, t)]
        s = torch.maximum(t - config.lcm_step, edge)
        t, s, edge = (times.to(latent.device) for times in (t, s, edge))
        noise = item.draws.normal("phased/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        z_t = schedule.add_noise(latent, noise, t)

        teacher = GuidedTeacher(roles, item, config, schedule)
        z_s, teacher_x0 = teacher.solve(z_t, t, s, config.teacher_steps)

        # The student goes first: under autocast, weights cast inside the target's inference mode would be cached and
        # then met by the student's graph.
        control = roles.model.write(teacher.conditions)
        eps = predict_noise(roles.model, z_t, t, teacher.conditions, control)
        x0 = schedule.eps_to_x0(z_t, eps, t)
        prediction = ddim_step(x0, eps, *schedule.alpha_sigma(edge, latent))
        target = z_s
        if config.lcm_step < int((self.upper - self.lower).max()):
            with roles.target():
                # The target is the student itself, so the WriteNet has nothing new to say to it.
                eps_s = predict_noise(roles.model, z_s, s, teacher.conditions, tuple(m.detach() for m in control))
                target = ddim_step(schedule.eps_to_x0(z_s, eps_s, s), eps_s, *schedule.alpha_sigma(edge, latent))

        per_sample = config.distance(prediction, target.clone())
        return loss_output(per_sample, teacher_distance=root_mean_square(x0 - teacher_x0))
