"""Shared by the student objectives: the conditions of a micro-batch, and the teacher's guided estimate under them.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytext2.core.batch import Control
from anytext2.core.rng import Draws
from distill.adapters.roles import Roles, predict_noise
from distill.diffusion.guidance import predict_guided, with_negative
from distill.diffusion.samplers import SamplerOptions
from distill.diffusion.schedule import GRIDS, NoiseSchedule, expand_like
from distill.diffusion.solver import ddim_step, heun_step
from distill.losses.step_input import StepInput, masked_latent_of
from distill.losses.terms import TermInput, terms_with_attention
from distill.losses.writenet_attention import AttentionRecorder
from distill.objectives.base import StudentSpec
from distill.objectives.distillation_loss import DistillationLossConfig

SOLVERS = ("ddim", "heun")


@dataclass
class StudentConfig(DistillationLossConfig):
    """The options that all student objectives have.

    ``w_min``, ``w_max``: range of the teacher's guidance w in ``c + w (c - u)``; the usual guidance scale is w + 1.
    ``negative_prompt``: of that guidance. ``solver_steps``, ``grid``: the times that the student is trained and sampled
    at, see `solver_grid`.
    """

    w_min: float = 5.0
    w_max: float = 15.0
    negative_prompt: str = ""
    solver_steps: int = 50
    grid: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.w_min <= self.w_max:
            raise ValueError(f"w_min = {self.w_min}, w_max = {self.w_max}: expected 0 <= w_min <= w_max")
        if self.solver_steps < 1:
            raise ValueError(f"solver_steps = {self.solver_steps}: must be >= 1 (50 is usual)")
        if self.grid not in GRIDS:
            raise ValueError(f"grid = '{self.grid}': choose one of {', '.join(GRIDS)}")

    @property
    def is_unguided(self) -> bool:
        """Whether the teacher's unconditional estimate is never used."""
        return self.w_max == 0.0

    def sampled_with(
        self, sampler: str, phases: int | None = None, sigma_data: float = 0.5, timestep_scaling: float = 10.0
    ) -> StudentSpec:
        """The declaration of a student with these options that is sampled with ``sampler``."""
        options = SamplerOptions(self.solver_steps, self.grid, sigma_data, timestep_scaling)
        return StudentSpec(sampler, options, phases, (self.w_min + 1.0, self.w_max + 1.0), self.terms)


class GuidedTeacher:
    """The teacher under guidance w drawn per sample, for one micro-batch; computes conditions and WriteNet maps once.

    ``conditions`` are normal tensors that the student shares: text tower, text embedding and VAE carry no adapter, so
    their outputs are the same for every role.
    """

    def __init__(self, roles: Roles, item: StepInput, config: StudentConfig, schedule: NoiseSchedule) -> None:
        self._roles, self._item, self._schedule = roles, item, schedule
        self._scale = None if config.is_unguided else guidance_of(item.draws, config).double() + 1.0
        self._recorder = AttentionRecorder(active=bool(terms_with_attention(config.terms, item.update)))
        with roles.teacher() as model:
            conditions = model.encode_conditions(item.batch, masked_latent_of(model, item))
            self._given = conditions
            if not config.is_unguided:
                negative = item.negative or model.negative_contexts(config.negative_prompt)
                self._given = with_negative(conditions, negative)
            self._control = self._recorder.write(model, self._given, "teacher", item.batch.size)
            self._context = model.project_context(self._given)
        # An inference tensor may not be saved for backward; clones made out here are normal ones.
        self.conditions = conditions.map(torch.clone)

    def student_control(self) -> Control:
        """The WriteNet's maps for ``conditions`` by the active adapter, with its graph."""
        return self._recorder.write(self._roles.model, self.conditions, "student")

    def term_input(
        self, prediction: Tensor, target: Tensor, x0: Tensor, teacher_x0: Tensor, clean: Tensor, t: Tensor
    ) -> TermInput:
        """The input of the distillation loss, see `TermInput`."""
        return TermInput(
            prediction, target, x0, teacher_x0, clean, t, self._schedule, self._item, self._roles, self._recorder
        )

    def __call__(self, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The guided x0 and eps [B,C,h,w] at (``noisy``, ``t``); normal tensors, free of any graph.

        Both are extrapolated: ``eps_c + w (eps_c - eps_u)``, and x0 likewise, because it is linear in eps (Luo et al.
        2023, eq. 14, as in the LCM-LoRA script of diffusers).
        """
        with self._roles.teacher() as model:
            if self._scale is None:
                eps = predict_noise(model, noisy, t, self._given, self._control, self._context)
            else:
                scale = expand_like(self._scale, noisy)
                eps = predict_guided(model, noisy, t, self._given, self._control, scale, self._context)
            x0 = self._schedule.eps_to_x0(noisy, eps, t)
        return x0.clone(), eps.clone()

    def solve(self, noisy: Tensor, t: Tensor, s: Tensor, steps: int, solver: str = "ddim") -> tuple[Tensor, Tensor]:
        """``noisy`` moved from t down to s [B] in equal steps of the solver, and the guided x0 at (``noisy``, t)."""
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


def guidance_of(draws: Draws, config: StudentConfig) -> Tensor:
    """w ~ U[w_min, w_max], float32 [B] on the CPU."""
    return draws.uniform("guidance", config.w_min, config.w_max)
