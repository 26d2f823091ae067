"""Samplers as pure functions over one model contract: ``predict(x [B,C,h,w], t int64 [B]) -> eps [B,C,h,w]``.

All have the same signature, so a new sampler is one function here and one entry in `SAMPLERS`; what only some of them
use is in `SamplerOptions`. Conditions, guidance and WriteNet maps are the business of whoever builds ``predict``. The
caller supplies the noise, so a picture is a function of its seed and not of a sampler's internal state.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.diffusion.schedule import NoiseSchedule, boundary_scalings, expand_like, solver_grid
from distill.diffusion.solver import ddim_step

Predict = Callable[[Tensor, Tensor], Tensor]
StepNoise = Callable[[int], Tensor]
"""Standard normal noise [B,C,h,w] of the given step (0 is the first step after x_T)."""


@dataclass(frozen=True)
class SamplerOptions:
    """What samplers can be set to; each uses the options that its docstring names.

    solver_steps, grid: the times that few-step samplers choose from, see `solver_grid`; the same as in the student's
    training. sigma_data, timestep_scaling: of the boundary scalings. gamma: share of noise that the trajectory sampler
    adds in each step (eta in diffusers' TCDScheduler). eta: share of fresh noise in DDIM.
    """

    solver_steps: int = 50
    grid: str = "uniform"
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    gamma: float = 0.3
    eta: float = 0.0


LCM_OPTIONS = SamplerOptions()
"""The values of latent consistency models (Luo et al. 2023)."""


class Sampler(Protocol):
    """``x_T`` is standard normal noise; the result is a latent of its shape and device, in at least float32."""

    def __call__(
        self,
        predict: Predict,
        x_T: Tensor,
        n_steps: int,
        schedule: NoiseSchedule,
        noise: StepNoise | None = None,
        options: SamplerOptions = LCM_OPTIONS,
    ) -> Tensor: ...


def leading_timesteps(n_steps: int, timesteps: int = 1000) -> Tensor:
    """AnyText2's sampling grid, int64 [n] descending: ``i (T // n) + 1``, e.g. 751, 501, 251, 1 for four steps.

    Equal to AnyText2's for every n that divides T; for others it has n steps where AnyText2 would take more.
    """
    if not 1 <= n_steps < timesteps:
        raise ValueError(f"sampling steps: {n_steps} is impossible with DDIM, choose 1 to {timesteps - 1}")
    return (torch.arange(n_steps) * (timesteps // n_steps) + 1).flip(0)


def sample_ddim(
    predict: Predict,
    x_T: Tensor,
    n_steps: int,
    schedule: NoiseSchedule,
    noise: StepNoise | None = None,
    options: SamplerOptions = LCM_OPTIONS,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16) on AnyText2's grid; deterministic unless ``options.eta`` > 0.

    The last step goes to timestep 0 of the table, not to zero noise, as in AnyText2.
    """
    eta = options.eta
    if eta > 0 and noise is None:
        raise ValueError(f"eta = {eta} needs a source of noise; pass noise= or set eta to 0")
    x = _at_least_float32(x_T)
    times = leading_timesteps(n_steps, schedule.timesteps)
    drawn = [noise(step).to(x) for step in range(n_steps)] if eta > 0 and noise is not None else []
    for step, (now, then) in enumerate(pairwise(_levels(F.pad(times, (0, 1)), schedule, x))):
        eps = predict(x, now.t).to(x.dtype)
        x0 = now.x0(x, eps)
        if drawn:
            # eq. 16: the share of the step's noise that is drawn afresh instead of carried on
            share = (1.0 - (now.alpha / then.alpha).square()).clamp_min(0.0).sqrt()
            fresh = eta * (then.sigma / now.sigma) * share
            carried = (then.sigma.square() - fresh.square()).clamp_min(0.0).sqrt()
            x = ddim_step(x0, eps, then.alpha, carried) + fresh * drawn[step]
        else:
            x = ddim_step(x0, eps, then.alpha, then.sigma)
    return x


def sample_phased(
    predict: Predict,
    x_T: Tensor,
    n_steps: int,
    schedule: NoiseSchedule,
    noise: StepNoise | None = None,
    options: SamplerOptions = LCM_OPTIONS,
) -> Tensor:
    """DDIM along the edges of ``n_steps`` phases (Wang et al. 2024, PCM), deterministic.

    The edges are the `sampling_timesteps` of the grid (``options.solver_steps``, ``options.grid``), so sampling begins
    at the top of the schedule. ``noise`` is not used.
    """
    return sample_trajectory(predict, x_T, n_steps, schedule, None, replace(options, gamma=0.0))


def sample_trajectory(
    predict: Predict,
    x_T: Tensor,
    n_steps: int,
    schedule: NoiseSchedule,
    noise: StepNoise | None = None,
    options: SamplerOptions = LCM_OPTIONS,
) -> Tensor:
    """Strategic stochastic sampling (Zheng et al. 2024, TCD, algorithm 4).

    Each step goes past its end t, to (1 - ``options.gamma``) t, and adds fresh noise to return to t: gamma 0 is
    `sample_phased`, gamma 1 goes to time 0 in every step, as `sample_consistency` does. The times are the
    `sampling_timesteps` of the grid (``options.solver_steps``, ``options.grid``).
    """
    gamma = options.gamma
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma = {gamma}: must be in [0, 1] (0.3 is usual)")
    if gamma > 0 and n_steps > 1 and noise is None:
        raise ValueError(f"trajectory sampling with gamma = {gamma} needs a source of noise; pass noise=")
    x = _at_least_float32(x_T)
    times = sampling_timesteps(n_steps, solver_grid(options.grid, options.solver_steps, schedule))
    ends = F.pad(times[1:], (0, 1))
    past = ((1.0 - gamma) * ends.double()).long()
    drawn = [noise(step).to(x) for step in range(n_steps - 1)] if gamma > 0 and noise is not None else []
    levels = zip(*(_levels(of, schedule, x) for of in (times, past, ends)), strict=True)
    for step, (now, then, end) in enumerate(levels):
        eps = predict(x, now.t).to(x.dtype)
        x = ddim_step(now.x0(x, eps), eps, then.alpha, then.sigma)
        if step < len(drawn):
            kept = end.alpha / then.alpha
            x = kept * x + (1.0 - kept.square()).sqrt() * drawn[step]
    return x


def sampling_timesteps(n_steps: int, grid: Tensor) -> Tensor:
    """The times of few-step sampling, int64 [n] descending: n evenly spread entries of ``grid``, the highest first.

    999, 759, 499, 259 for four steps of a 50-step solver (diffusers' LCMScheduler picks the same).
    """
    if not 1 <= n_steps <= len(grid):
        raise ValueError(f"sampling steps: {n_steps} is impossible on a {len(grid)}-step grid, choose 1 to it")
    # integer arithmetic: the floor of i * N / n without a rounding fault just below a whole number
    return grid.flip(0)[torch.arange(n_steps) * len(grid) // n_steps]


def sample_consistency(
    predict: Predict,
    x_T: Tensor,
    n_steps: int,
    schedule: NoiseSchedule,
    noise: StepNoise | None = None,
    options: SamplerOptions = LCM_OPTIONS,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023, algorithm 3).

    Each step goes to the clean estimate ``f = c_skip x + c_out x0``; all but the last then add ``noise(step)`` for the
    next time. Uses all options but gamma and eta.
    """
    if n_steps > 1 and noise is None:
        raise ValueError(f"consistency sampling with {n_steps} steps needs a source of noise; pass noise=")
    x = _at_least_float32(x_T)
    times = sampling_timesteps(n_steps, solver_grid(options.grid, options.solver_steps, schedule))
    levels = _levels(times, schedule, x)
    scalings = boundary_scalings(times, options.sigma_data, options.timestep_scaling)
    c_skip, c_out = (expand_like(scaling, x).unbind() for scaling in scalings)
    drawn = [] if noise is None else [noise(step).to(x) for step in range(n_steps - 1)]
    for step, now in enumerate(levels):
        x0 = now.x0(x, predict(x, now.t).to(x.dtype))
        x = c_skip[step] * x + c_out[step] * x0
        if step + 1 < n_steps:
            x = levels[step + 1].alpha * x + levels[step + 1].sigma * drawn[step]
    return x


SAMPLERS: dict[str, Sampler] = {
    "ddim": sample_ddim,
    "consistency": sample_consistency,
    "phased": sample_phased,
    "trajectory": sample_trajectory,
}

TEACHER_SAMPLER = "ddim"
"""The teacher's own sampler: the only one whose times are AnyText2's instead of the student's grid."""


class _Level(NamedTuple):
    """A time of a sampler's path: int64 [B], and the schedule's alpha and sigma there, [1,1,1]."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def x0(self, x: Tensor, eps: Tensor) -> Tensor:
        """x_0 = (x - sigma eps) / alpha."""
        return (x - self.sigma * eps) / self.alpha


def _levels(times: Tensor, schedule: NoiseSchedule, x: Tensor) -> list[_Level]:
    """The levels at ``times``, int64 [N], on the device of ``x`` [B,C,h,w].

    They are made before the first step: a tensor that comes from the host inside of the loop stops an accelerator.
    """
    t = times.to(x.device)
    alpha, sigma = schedule.alpha_sigma(t, x)
    rows = t[:, None].repeat(1, x.shape[0])
    return [_Level(*level) for level in zip(rows.unbind(), alpha.unbind(), sigma.unbind(), strict=True)]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
