"""Training of a teacher: AnyText2's noise prediction loss (AnyText2 code, ``p_losses``; Ho et al. 2020, eq. 14).

Two intended differences to the released training code: the mask of ignored text is resized to the latent's own size
instead of 64 x 64, and the context can be dropped in a share of the samples, for classifier-free guidance.

Shape legend: B batch, L lines, C channels, H/W pixels, h/w latent cells, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anytext2.core.batch import Conditions, Control
from anytext2.core.transfer import to_device
from distill.adapters.roles import Roles, predict_noise
from distill.diffusion.guidance import repeat_tokens
from distill.diffusion.schedule import NoiseSchedule
from distill.diffusion.solver import ddim_step
from distill.losses import distances
from distill.losses.step_input import LossOutput, StepInput, loss_output, masked_latent_of, require_latent
from distill.losses.text_mask import not_ignored, text_share
from distill.objectives.base import FullWeightObjective, ObjectiveConfig, named_parameters_of

if TYPE_CHECKING:
    from anytext2.model.anytext2 import AnyText2

_ROLLOUT_GAMMA = 5.0

SCOPES = {
    "official": ("control_model", "embedding_manager"),
    "all": ("control_model", "embedding_manager", "model.diffusion_model", "cond_stage_model"),
}


@dataclass
class DenoiseConfig(ObjectiveConfig):
    """``context_dropout``: share of samples whose two captions are replaced by the unconditional ones.

    ``text_weight``: extra weight of the cells inside the text boxes (0: none, as AnyText2).
    ``velocity_cap``: a sample's loss has the weight min(1 / abar_t, cap). 1: the plain noise loss, as AnyText2;
    infinity: the velocity loss (Salimans and Ho 2022, appendix D). A large weight at high noise teaches colours and
    layout sooner.
    ``input_perturbation``: the model's input has noise + this share of additional noise; the target stays the noise
    (Ning et al. 2023, algorithm 1, gamma). It imitates a sampler's own errors, so fewer of them accumulate.
    ``rollout``: scheduled sampling (Deng et al. 2023, Markup-to-Image): in this share of samples the noisy latent is
    the end of the model's own step from up to ``rollout_reach`` timesteps above, and the target is the noise between
    that latent and the picture, so that the model learns to correct its own errors. Such samples also have the weight
    min(SNR, 5) / SNR, because at low noise an error of x0 is a large error of noise.
    ``scope``: ``official`` trains what AnyText2 trains (WriteNet, text embedding, attn1x/attn2x); ``all`` trains the
    whole UNet and the text tower too. VAE and glyph recogniser are always frozen.
    ``frozen``: modules (dotted paths) of the scope that stay as they are.
    """

    context_dropout: float = 0.0
    text_weight: float = 0.0
    velocity_cap: float = 1.0
    input_perturbation: float = 0.0
    rollout: float = 0.0
    rollout_reach: int = 200
    scope: str = "official"
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0.0 <= self.context_dropout < 1.0:
            raise ValueError(f"denoise.context_dropout = {self.context_dropout}: must be in [0, 1)")
        if self.text_weight < 0:
            raise ValueError(f"denoise.text_weight = {self.text_weight}: must be >= 0")
        if not self.velocity_cap >= 1.0:
            raise ValueError(f"denoise.velocity_cap = {self.velocity_cap}: must be >= 1")
        if not 0.0 <= self.input_perturbation < 1.0:
            raise ValueError(f"denoise.input_perturbation = {self.input_perturbation}: must be in [0, 1)")
        if not 0.0 <= self.rollout <= 1.0:
            raise ValueError(f"denoise.rollout = {self.rollout}: must be in [0, 1]")
        if self.rollout_reach < 1:
            raise ValueError(
                f"denoise.rollout_reach = {self.rollout_reach}: must be at least 1 timestep (200 is usual)"
            )
        if self.scope not in SCOPES:
            raise ValueError(f"denoise.scope = '{self.scope}': choose one of {', '.join(SCOPES)}")


class Denoise(FullWeightObjective):
    """Predicts the noise in ``latent`` at t ~ U{0..T-1}."""

    Config = DenoiseConfig
    config: DenoiseConfig
    trains = "teacher"

    def __init__(self, config: DenoiseConfig, schedule: NoiseSchedule) -> None:
        self.config = config
        self.schedule = schedule

    def trainable(self, model: AnyText2) -> Iterable[tuple[str, nn.Parameter]]:
        frozen = tuple(f"{path}." for path in self.config.frozen)
        return ((name, parameter) for name, parameter in self._scope(model) if not name.startswith(frozen))

    def _scope(self, model: AnyText2) -> Iterable[tuple[str, nn.Parameter]]:
        yield from named_parameters_of(model, SCOPES[self.config.scope])
        if self.config.scope == "official":
            for name, parameter in named_parameters_of(model, ("model.diffusion_model",)):
                if "attn1x" in name or "attn2x" in name:
                    yield name, parameter

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: ``loss_text`` is the unweighted loss inside the text boxes, ``loss_plain`` that over everything."""
        model, latent = roles.model, require_latent(item)
        t = item.draws.integers("denoise/t", 0, self.schedule.timesteps, device=latent.device)
        noise = item.draws.normal("denoise/noise", latent.shape[1:], device=latent.device, dtype=latent.dtype)
        seen = noise
        if self.config.input_perturbation > 0:
            more = item.draws.normal("denoise/perturbation", latent.shape[1:], device=latent.device, dtype=latent.dtype)
            seen = noise + self.config.input_perturbation * more
        schedule = self.schedule.to(latent.device)
        noisy = schedule.add_noise(latent, seen, t)

        conditions = model.encode_conditions(item.batch, masked_latent_of(model, item))
        conditions = self._drop_context(model, conditions, item)
        control = model.control_maps(conditions)
        weight = schedule.velocity_weight(t, self.config.velocity_cap)
        # drawn on the CPU, so that a batch without such samples costs nothing
        rolled = (item.draws.uniform("denoise/rollout", 0.0, 1.0) < self.config.rollout).nonzero().flatten()
        if len(rolled):
            rows = to_device(rolled, latent.device)
            noisy[rows] = self._rolled_out(model, item, rows, latent, noise, t, conditions, control)
            noise = noise.index_copy(0, rows, schedule.x0_to_eps(noisy[rows], latent[rows], t[rows]))
            weight[rows] *= schedule.snr_weight(t[rows], _ROLLOUT_GAMMA, of_noise=True)
        eps = predict_noise(model, noisy, t, conditions, control)

        allowed, inside = (area(item.batch, *latent.shape[-2:]) for area in (not_ignored, text_share))
        per_sample = distances.l2(eps, noise, weight=allowed * (1.0 + self.config.text_weight * inside))
        per_sample = per_sample * weight.to(per_sample)
        with torch.no_grad():
            error = (eps - noise).square()
            text_error = (error * inside).sum() / (inside.sum() * error.shape[1]).clamp_min(1.0)
        return loss_output(per_sample, loss_plain=error.mean(), loss_text=text_error)

    @torch.no_grad()
    def _rolled_out(
        self,
        model: AnyText2,
        item: StepInput,
        rows: Tensor,
        latent: Tensor,
        noise: Tensor,
        t: Tensor,
        conditions: Conditions,
        control: Control,
    ) -> Tensor:
        """The latents [R,C,h,w] at ``t`` after the model's DDIM step from a time above, for the given ``rows``."""
        schedule, clean, end = self.schedule.to(latent.device), latent[rows], t[rows]
        reach = item.draws.integers("denoise/reach", 1, self.config.rollout_reach + 1, device=latent.device)
        start = (end + reach[rows]).clamp_max(schedule.timesteps - 1)
        above = schedule.add_noise(clean, noise[rows], start)
        mine = conditions.map(lambda tensor: tensor[rows])
        eps = predict_noise(model, above, start, mine, tuple(level[rows] for level in control))
        return ddim_step(schedule.eps_to_x0(above, eps, start), eps, *schedule.alpha_sigma(end, clean))

    def _drop_context(self, model: AnyText2, conditions: Conditions, item: StepInput) -> Conditions:
        """Captions of the drawn samples replaced by the unconditional ones; hints stay, as in guided sampling."""
        # drawn on the CPU, so that a batch without dropped captions needs no unconditional encoding
        dropped = item.draws.uniform("denoise/drop", 0.0, 1.0) < self.config.context_dropout
        if not dropped.any():
            return conditions
        rows = to_device(dropped, conditions.image_context.device).reshape(-1, 1, 1)
        image, text = conditions.image_context, conditions.text_context
        negative = model.negative_contexts()
        return replace(
            conditions,
            image_context=torch.where(rows, repeat_tokens(negative.image, image.shape[1]), image),
            text_context=torch.where(rows, repeat_tokens(negative.text, text.shape[1]), text),
        )
