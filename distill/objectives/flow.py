"""Consistency along the probability-flow ODE: what the phased and the trajectory objective share.

The student's step from (z_t, t) to a later time e is one DDIM step with its own estimate,
``F(z_t, t -> e) = alpha_e x0(z_t, t) + sigma_e eps(z_t, t)``. It is to end where its (or its average's) step to e from
the teacher's z_s ends, t > s >= e. At s = e that is z_s itself, so no boundary scalings are needed.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.objectives.base import LossOutput, Roles, StepInput, loss_output, predict_noise, require_latent
from distill.objectives.guidance import GuidedConfig, GuidedTeacher, root_mean_square
from distill.schedule import NoiseSchedule
from distill.solver import ddim_step


@dataclass
class FlowConfig(GuidedConfig):
    """``solver_steps``: N of the solver's grid. ``lcm_step``: k, how far the teacher goes, in timesteps of the table.

    ``teacher_steps``: equal DDIM steps in which it goes there.
    """

    solver_steps: int = 50
    lcm_step: int = 20
    teacher_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps = {self.solver_steps}: must be >= 1 (50 is usual)")
        if self.lcm_step < 1:
            raise ValueError(f"lcm_step = {self.lcm_step}: must be at least 1 timestep (20 is one of 50 solver steps)")
        if self.teacher_steps < 1:
            raise ValueError(f"teacher_steps = {self.teacher_steps}: must be at least 1")


def flow_loss(
    roles: Roles,
    item: StepInput,
    config: FlowConfig,
    schedule: NoiseSchedule,
    purpose: str,
    times: tuple[Tensor, Tensor, Tensor],
) -> LossOutput:
    """The loss for ``times`` (t, s, e), each int64 [B] with t > s >= e, with the noise drawn for ``purpose``.

    Report: ``teacher_distance``, RMS between the student's and the teacher's guided x0 at z_t.
    """
    latent = require_latent(item)
    schedule = schedule.to(latent.device)
    t, s, e = (time.to(latent.device) for time in times)
    noise = item.draws.normal(f"{purpose}/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
    z_t = schedule.add_noise(latent, noise, t)
    teacher = GuidedTeacher(roles, item, config, schedule)
    z_s, teacher_x0 = teacher.solve(z_t, t, s, config.teacher_steps)

    # The student goes first: under autocast, weights cast inside the target's inference mode would be cached and then
    # met by the student's graph.
    control = roles.model.write(teacher.conditions)
    eps = predict_noise(roles.model, z_t, t, teacher.conditions, control)
    x0 = schedule.eps_to_x0(z_t, eps, t)
    prediction = ddim_step(x0, eps, *schedule.alpha_sigma(e, latent))
    target = z_s
    if bool((times[1] > times[2]).any()):  # on the CPU, where the times are drawn
        with roles.target():
            # The target is the student itself, so the WriteNet has nothing new to say to it.
            eps_s = predict_noise(roles.model, z_s, s, teacher.conditions, tuple(m.detach() for m in control))
            target = ddim_step(schedule.eps_to_x0(z_s, eps_s, s), eps_s, *schedule.alpha_sigma(e, latent))

    per_sample = config.distance(prediction, target.clone())
    return loss_output(per_sample, teacher_distance=root_mean_square(x0 - teacher_x0))
