"""What the LoRA objectives share: the conditions, made once, and the teacher's guided estimate.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytext2.core.batch import Conditions, Control
from anytext2.core.rng import Draws
from distill.adapters.roles import Roles, predict_noise
from distill.diffusion.schedule import GRIDS, NoiseSchedule, expand_like
from distill.diffusion.solver import ddim_step, heun_step
from distill.losses.step import StepInput, masked_latent_of
from distill.losses.terms import terms_needing
from distill.losses.writenet_attention import cloned, write
from distill.objectives.distillation_loss import MatchingConfig

SOLVERS = ("ddim", "heun")


@dataclass
class GuidedConfig(MatchingConfig):
    """What every objective with a guided teacher needs.

    ``w_min``, ``w_max``: range of the guidance w in ``c + w (c - u)``; the usual guidance scale is w + 1.
    """

    w_min: float = 5.0
    w_max: float = 15.0
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.w_min <= self.w_max:
            raise ValueError(f"w_min = {self.w_min}, w_max = {self.w_max}: expected 0 <= w_min <= w_max")

    @property
    def unguided(self) -> bool:
        """The teacher's unconditional estimate never matters."""
        return self.w_max == 0.0


@dataclass
class GridConfig(GuidedConfig):
    """``solver_steps``, ``grid``: of the times that a student learns and is sampled at, see `solver_grid`."""

    solver_steps: int = 50
    grid: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps = {self.solver_steps}: must be >= 1 (50 is usual)")
        if self.grid not in GRIDS:
            raise ValueError(f"grid = '{self.grid}': choose one of {', '.join(GRIDS)}")


class GuidedTeacher:
    """The teacher under guidance w drawn per sample, for one micro-batch: conditions and WriteNet maps are made once.

    ``conditions`` are normal tensors, for the student to share: text tower, text embedding and VAE carry no adapter, so
    what they say holds for every role. ``attention``: what the WriteNet attended to under the conditions, where a term
    of the loss asks for it.
    """

    def __init__(self, roles: Roles, item: StepInput, config: GuidedConfig, schedule: NoiseSchedule) -> None:
        model = roles.model
        self._roles, self._schedule = roles, schedule
        self._w = guidance_of(item.draws, config)
        attending = bool(terms_needing(config.terms, "needs_attention", item.update))
        with roles.teacher():
            conditions = model.encode_conditions(item.batch, masked_latent_of(model, item))
            control, attention = write(model, conditions, attending)
            self._given = conditions, control
            self._without: tuple[Conditions, Control] | None = None
            if not config.unguided:
                without = model.unconditional(conditions, item.batch, config.negative_prompt)
                self._without = without, model.control_maps(without)
        # An inference tensor may not be saved for backward; clones made out here are normal ones.
        self.conditions = conditions.map(torch.clone)
        self.attention = cloned(attention)

    def __call__(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided x0 and eps [B,C,h,w] at (``noisy``, ``t``); normal tensors, free of any graph.

        Both are extrapolated: ``x0_c + w (x0_c - x0_u)`` and likewise eps (Luo et al. 2023, eq. 14; as in the diffusers
        LCM-LoRA script).
        """
        model, schedule = self._roles.model, self._schedule
        with self._roles.teacher():
            eps = predict_noise(model, noisy, t, *self._given)
            x0 = schedule.eps_to_x0(noisy, eps, t)
            if self._without is not None:
                w = expand_like(self._w, noisy)
                eps_u = predict_noise(model, noisy, t, *self._without)
                x0 = x0 + w * (x0 - schedule.eps_to_x0(noisy, eps_u, t))
                eps = eps + w * (eps - eps_u)
        return x0.clone(), eps.clone()

    def solve(self, noisy: Tensor, t: Tensor, s: Tensor, steps: int, solver: str = "ddim") -> tuple[Tensor, Tensor]:
        """``noisy`` taken from t down to s [B] in equal steps of the solver, and the guided x0 at (``noisy``, t)."""
        now, x, first_x0 = t, noisy, None
        for step in range(1, steps + 1):
            then = t - (t - s) * step // steps
            here, there = self._schedule.alpha_sigma(now, x), self._schedule.alpha_sigma(then, x)
            x0, eps = self(x, now)
            first_x0 = x0 if first_x0 is None else first_x0
            end = ddim_step(x0, eps, *there)
            x = heun_step(x, eps, self(end, then)[1], here, there) if solver == "heun" else end
            now = then
        assert first_x0 is not None, "at least one step"
        return x, first_x0


def guidance_of(draws: Draws, config: GuidedConfig) -> Tensor:
    """w ~ U[w_min, w_max], float32 [B] on the CPU."""
    return draws.uniform("guidance", config.w_min, config.w_max)
