"""The AnyText2 model (Tuo et al. 2024): VAE, condition encoders, WriteNet and UNet.

The model keeps no state between calls. Results that can be reused (conditions, control maps) are values that the
caller holds. Attribute names are the official checkpoint's, down to `model.diffusion_model`.

Shape suffixes: B batch, N lines of the batch, C channels, H/W pixels, h/w latent cells, T tokens, D context width;
z latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from anytext2.core.batch import Batch, Conditions, Contexts, Control
from anytext2.model.config import AnyText2Config, ScheduleConfig, load_model_config
from anytext2.model.layers import Context, ProjectedContext, initialise
from anytext2.model.recognizer import Recognizer
from anytext2.model.text_embedding import TextEmbedding
from anytext2.model.text_encoder import TextEncoder
from anytext2.model.unet import UNet
from anytext2.model.vae import VAE
from anytext2.model.writenet import WriteNet

__all__ = ["AnyText2", "AnyText2Config", "build_model", "load_model_config", "schedule_tables"]

BLANK_PIXEL = -1.0
"""Pixel value of the masked image where the picture is hidden: everywhere, unless the sample is edited."""


def schedule_tables(cfg: ScheduleConfig) -> dict[str, Tensor]:
    """The 13 tables of the official checkpoint, float32 [timesteps] each, computed in float64.

    Equations 4, 6 and 7 of Ho et al. 2020, "Denoising Diffusion Probabilistic Models". The square roots of the betas
    are evenly spaced (latent-diffusion's schedule "linear").
    """
    betas = np.linspace(cfg.linear_start**0.5, cfg.linear_end**0.5, cfg.timesteps) ** 2
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    variance = betas * (1 - before) / (1 - bar)
    tables = {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
        "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / bar - 1),
        "posterior_variance": variance,
        # the first step's variance is 0, therefore the logarithm is clipped
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - bar),
        "logvar": np.zeros_like(betas),
    }
    return {name: torch.from_numpy(table).float() for name, table in tables.items()}


class DiffusionWrapper(nn.Module):
    """Holds the UNet under its name in latent-diffusion checkpoints, `model.diffusion_model`."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.diffusion_model = unet


class AnyText2(nn.Module):
    """The complete model.

    Args:
        cfg: sizes of all parts.
        activation_checkpointing: which activations of the UNet and the WriteNet are recomputed in the backward pass,
            see :mod:`anytext2.model.recomputation`.
    """

    def __init__(self, cfg: AnyText2Config, activation_checkpointing: str = "none") -> None:
        super().__init__()
        self.cfg = cfg
        self.model = DiffusionWrapper(UNet(cfg.unet, activation_checkpointing))
        self.control_model = WriteNet(cfg.unet, cfg.writenet, activation_checkpointing)
        self.first_stage_model = VAE(cfg.vae)
        self.cond_stage_model = TextEncoder(cfg.text_encoder)
        self.embedding_manager = TextEmbedding(cfg.text_embedding, cfg.recognizer, cfg.text_encoder.width)
        self.text_predictor = Recognizer(cfg.recognizer)
        for name, table in schedule_tables(cfg.schedule).items():
            self.register_buffer(name, table)
        self.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AnyText2:
        """nn.Module._apply, except that the schedule's tables stay float32: they only move to the model's device."""
        super()._apply(fn, recurse)
        for name, table in schedule_tables(self.cfg.schedule).items():
            self._buffers[name] = table.to(getattr(self, name).device)
        return self

    def train(self, mode: bool = True) -> AnyText2:
        """nn.Module.train, except that the recognisers stay in eval mode.

        In train mode their batch norms would use the statistics of a few line crops. To train a recogniser itself, call
        `model.text_predictor.train()` after this.
        """
        super().train(mode)
        self.text_predictor.eval()
        self.embedding_manager.font_predictor.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computations outside autocast."""
        return self.model.diffusion_model.dtype

    @property
    def device(self) -> torch.device:
        return self.betas.device  # type: ignore[union-attr, return-value]

    # --- pictures ----------------------------------------------------------------------------------------------------

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(z, h, w) of the latent of a picture of height x width pixels."""
        step = self.cfg.vae.downsampling
        return self.cfg.vae.z_channels, height // step, width // step

    def encode(self, image_BCHW: Tensor, noise_BChw: Tensor | None = None) -> Tensor:
        """Scaled latents [B, z, h, w] of pictures [B, 3, H, W] in [-1, 1].

        noise_BChw: standard normal noise for a sample of the posterior; None for its mode.
        Raises ValueError if H or W is not a multiple of the VAE's downsampling.
        """
        noise = None if noise_BChw is None else noise_BChw.to(self.dtype)
        return self.first_stage_model.encode(image_BCHW.to(self.dtype), noise)

    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [B, z, h, w] each, of the scaled latents of pictures [B, 3, H, W] in [-1, 1]."""
        mean, logvar = self.first_stage_model.encode_moments(image_BCHW.to(self.dtype))
        scale = self.cfg.vae.scale_factor
        return mean * scale, torch.exp(0.5 * logvar) * scale

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of scaled latents [B, z, h, w], about in [-1, 1], not clamped."""
        return self.first_stage_model.decode(latent_BChw.to(self.dtype))

    def blank_latent(self, height: int, width: int) -> Tensor:
        """Scaled latent [1, z, h, w] of a blank picture, the masked latent of a sample that is not edited."""
        return self.encode(torch.full((1, 3, height, width), BLANK_PIXEL, device=self.device))

    def masked_latents(self, batch: Batch, blank: Tensor | None = None) -> Tensor:
        """Scaled latents [B, z, h, w] of the masked images: the posterior's mode (official AnyText2 samples it).

        Only the rows in editing mode are encoded. The others get `blank`.
        blank: `blank_latent` of the batch's picture size; None: it is computed if needed.
        """
        if batch.masked_latent is not None:
            rows = batch.masked_latent.to(self.dtype)
            if all(batch.editing):
                return rows
            blank = self.blank_latent(*batch.position.shape[-2:]) if blank is None else blank
            return torch.stack([row if editing else blank[0] for row, editing in zip(rows, batch.editing, strict=True)])
        # Rows one by one: an index tensor would make the host wait for its copy to the device.
        edited = [picture for picture, editing in zip(batch.masked_image, batch.editing, strict=True) if editing]
        if len(edited) == batch.size:
            return self.encode(batch.masked_image)
        blank = self.blank_latent(*batch.position.shape[-2:]) if blank is None else blank
        encoded = iter(self.encode(torch.stack(edited)) if edited else ())
        return torch.stack([next(encoded) if editing else blank[0] for editing in batch.editing])

    # --- conditions --------------------------------------------------------------------------------------------------

    def encode_conditions(
        self,
        batch: Batch,
        masked_latent: Tensor,
        image_captions: Sequence[str] | None = None,
        text_captions: Sequence[str] | None = None,
    ) -> Conditions:
        """The conditions of a batch, differentiable in the encoders' parameters.

        Args:
            batch: after `Batch.normalized`.
            masked_latent: [B, z, h, w], see `masked_latents`.
            image_captions, text_captions: replace the batch's captions. An empty text caption uses none of its lines.
                Cached contexts of the batch are used for its own image captions only.
        Raises:
            ValueError: the number of placeholders of a text caption is not the sample's number of lines.
        """
        text_captions = batch.text_caption if text_captions is None else text_captions
        lines_ND = self.embedding_manager(batch, self.text_predictor)
        encoder, lines = self.cond_stage_model, (lines_ND, batch.n_lines, batch.name)
        if image_captions is None and batch.image_context is not None:
            image = encoder.encode_image_captions(batch.image_caption, batch.image_context, batch.context_chunks)
            contexts = Contexts(image, encoder.encode_text_captions(text_captions, *lines))
        else:
            contexts = encoder.encode_both(image_captions or batch.image_caption, text_captions, *lines)
        return Conditions(
            image_context=contexts.image,
            text_context=contexts.text,
            glyph=batch.glyph.to(self.dtype),
            position=batch.position.sum(dim=1, keepdim=True).to(self.dtype),
            masked_latent=masked_latent.to(self.dtype),
        )

    def negative_contexts(self, negative_prompt: str = "") -> Contexts:
        """The contexts of the unconditional branch of classifier-free guidance, one row, as in official AnyText2.

        The image caption is the negative prompt and the text caption is empty.
        """
        encoder = self.cond_stage_model
        no_lines = encoder.tower.positional_embedding.new_zeros(0, encoder.cfg.width)
        return Contexts(
            encoder.encode_image_captions([negative_prompt]),
            encoder.encode_text_captions([""], no_lines, [0], ["negative prompt"]),
        )

    # --- denoising ---------------------------------------------------------------------------------------------------

    def control_maps(self, conditions: Conditions) -> Control:
        """The WriteNet's control maps. They depend on neither x_t nor t: compute them once per sample."""
        return self.control_model(
            conditions.glyph, conditions.position, conditions.masked_latent, conditions.text_context
        )

    def predict_noise(
        self,
        x_BChw: Tensor,
        t_B: Tensor,
        context: Context,
        control: Control | None,
        attnx_scale: float = 1.0,
    ) -> Tensor:
        """The UNet's eps [B, z, h, w] of noisy latents at timesteps t in 0..timesteps - 1; see `UNet.forward`."""
        return self.model.diffusion_model(x_BChw, t_B, context, control, attnx_scale)

    def project_context(self, conditions: Conditions) -> ProjectedContext:
        """What the UNet's calls with these conditions share: see `UNet.project_context`."""
        return self.model.diffusion_model.project_context(conditions.image_context)


def build_model(
    config: AnyText2Config,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    activation_checkpointing: str = "none",
) -> AnyText2:
    """A model in eval mode, randomly initialised for training from scratch with torch's global generator.

    On device 'meta' nothing is allocated or initialised; call `to_empty` and `anytext2.model.weights.load_weights`.
    """
    target = torch.device(device or "cpu")
    # Weights are always drawn on the CPU, so that a seed gives the same weights on every device.
    with torch.device("meta" if target.type == "meta" else "cpu"):
        model = AnyText2(config, activation_checkpointing)
    if target.type != "meta":
        for part in (model.model.diffusion_model, model.control_model, model.first_stage_model):
            initialise(part)
    return model.eval().to(device=target, dtype=dtype)
