"""What the LoRA objectives share: the conditions, made once, and the teacher's guided estimate.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anytext2.batch import Conditions
from anytext2.randomness import Draws
from distill import losses
from distill.objectives.base import Roles, StepInput, masked_latent_of, predict_noise
from distill.schedule import NoiseSchedule, expand_like

if TYPE_CHECKING:
    from anytext2.model import AnyText2

DISTANCES = ("huber", "l2")


@dataclass
class GuidedConfig:
    """What every objective with a guided teacher needs.

    ``w_min``, ``w_max``: range of the guidance w in ``c + w (c - u)``; the usual guidance scale is w + 1.
    ``loss``: ``huber`` (with ``huber_c``) or ``l2``.
    """

    w_min: float = 5.0
    w_max: float = 15.0
    negative_prompt: str = ""
    loss: str = "huber"
    huber_c: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 <= self.w_min <= self.w_max:
            raise ValueError(f"w_min = {self.w_min}, w_max = {self.w_max}: expected 0 <= w_min <= w_max")
        if self.loss not in DISTANCES:
            raise ValueError(f"loss = '{self.loss}': choose one of {', '.join(DISTANCES)}")
        if self.huber_c <= 0:
            raise ValueError(f"huber_c = {self.huber_c}: must be > 0 (for a squared loss set loss to l2)")

    @property
    def unguided(self) -> bool:
        """The teacher's unconditional estimate never matters."""
        return self.w_max == 0.0

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Per-sample distance [B]."""
        if self.loss == "l2":
            return losses.l2(prediction, target)
        return losses.pseudo_huber(prediction, target, c=self.huber_c)


@dataclass(frozen=True)
class TeacherEstimate:
    """The guided x0 and eps [B,C,h,w], and the conditions of the step; all normal tensors, free of any graph."""

    x0: Tensor
    eps: Tensor
    conditions: Conditions


def guided_teacher(
    roles: Roles, item: StepInput, config: GuidedConfig, schedule: NoiseSchedule, noisy: Tensor, t: Tensor
) -> TeacherEstimate:
    """The teacher at (``noisy``, ``t``) under guidance w drawn per sample; no gradient.

    x0 and eps are both extrapolated: ``x0_c + w (x0_c - x0_u)`` and likewise eps (Luo et al. 2023, eq. 14; as in the
    diffusers LCM-LoRA script). One conditional and one unconditional pass, each with its own WriteNet maps.
    """
    model = roles.model
    # Text tower, text embedding and VAE carry no adapter: what they say holds for every role.
    with roles.teacher():
        conditions = model.condition(item.batch, masked_latent_of(model, item))
        eps = estimate_noise(model, noisy, t, conditions)
        x0 = schedule.eps_to_x0(noisy, eps, t)
        if not config.unguided:
            w = expand_like(guidance_of(item.draws, config), noisy)
            without = model.unconditional(conditions, item.batch, config.negative_prompt)
            eps_u = estimate_noise(model, noisy, t, without)
            x0 = x0 + w * (x0 - schedule.eps_to_x0(noisy, eps_u, t))
            eps = eps + w * (eps - eps_u)
    # An inference tensor may not be saved for backward; clones made out here are normal ones.
    return TeacherEstimate(x0.clone(), eps.clone(), conditions.map(torch.clone))


def guidance_of(draws: Draws, config: GuidedConfig) -> Tensor:
    """w ~ U[w_min, w_max], float32 [B] on the CPU."""
    return draws.uniform("guidance", config.w_min, config.w_max)


def estimate_noise(model: AnyText2, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
    """eps of the active role: its WriteNet maps, then the UNet with them."""
    return predict_noise(model, x, t, conditions, model.write(conditions))


def root_mean_square(values: Tensor) -> Tensor:
    return values.detach().square().mean().sqrt()
