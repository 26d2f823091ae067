"""Training of the VAE: L1 and Sobel gradients of the reconstruction, with a tiny KL term.

Letters are a small part of a picture, so a share of the samples is a square crop around a point on a text line: the
autoencoder learns strokes first and cheaply, then whole pictures.

Shape legend: B batch, C channels, H/W pixels, h/w latent cells, z latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from anytext2.core.batch import Batch
from anytext2.core.rng import Draws
from distill.adapters.roles import Roles
from distill.diffusion.schedule import NoiseSchedule
from distill.losses import distances
from distill.losses.step_input import LossOutput, StepInput, loss_output, rows_of
from distill.objectives.base import FullWeightObjective, ObjectiveConfig, named_parameters_of

if TYPE_CHECKING:
    from anytext2.model.anytext2 import AnyText2


@dataclass
class AutoencodeConfig(ObjectiveConfig):
    """``crop`` is the side of a text crop in pixels; ``crop_prob`` the share of samples that are cropped."""

    l1_weight: float = 1.0
    sobel_weight: float = 1.0
    kl_weight: float = 1e-5
    crop: int = 64
    crop_prob: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.crop_prob <= 1.0:
            raise ValueError(f"autoencode.crop_prob = {self.crop_prob}: must be between 0 and 1")
        if self.crop < 1:
            raise ValueError(f"autoencode.crop = {self.crop}: must be a positive multiple of the VAE's downsampling")
        if min(self.l1_weight, self.sobel_weight, self.kl_weight) < 0:
            raise ValueError("autoencode: l1_weight, sobel_weight and kl_weight must be >= 0")


class Autoencode(FullWeightObjective):
    """Reconstructs ``batch.image`` through a sampled posterior."""

    Config = AutoencodeConfig
    config: AutoencodeConfig
    trains = "vae"
    needs_latents = False

    def __init__(self, config: AutoencodeConfig, schedule: NoiseSchedule) -> None:
        self.config = config

    def trainable(self, model: AnyText2) -> Iterable[tuple[str, nn.Parameter]]:
        return named_parameters_of(model, ("first_stage_model",))

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Report: ``l1`` and ``sobel`` in image units, ``kl`` in nats per latent element, ``latent_std`` (unscaled)."""
        step = roles.model.first_stage_model.cfg.downsampling
        if self.config.crop % step:
            raise ValueError(f"autoencode.crop = {self.config.crop}: must be a multiple of {step} for this VAE")
        cropped, whole = self._groups(item.draws)
        terms = []
        for rows, crop in ((cropped, True), (whole, False)):
            if rows:
                draws = rows_of(item.draws, rows)
                image = crop_text(item.batch, rows, self.config.crop, draws) if crop else item.batch.image[rows]
                terms.append(_reconstruct(roles.model, image, draws))
        columns = {name: torch.cat([term[name] for term in terms]) for name in terms[0]}
        order = torch.tensor(cropped + whole, device=item.batch.image.device).argsort()
        per_sample = (
            self.config.l1_weight * columns["l1"]
            + self.config.sobel_weight * columns["sobel"]
            + self.config.kl_weight * columns["kl"]
        )[order]
        return loss_output(per_sample, **{name: values.mean() for name, values in columns.items()})

    def _groups(self, draws: Draws) -> tuple[list[int], list[int]]:
        """Rows to crop and rows to use whole; drawn per sample, on the CPU."""
        chosen = draws.uniform("autoencode/crop", 0.0, 1.0) < self.config.crop_prob
        return torch.nonzero(chosen).flatten().tolist(), torch.nonzero(~chosen).flatten().tolist()


def _reconstruct(model: AnyText2, image_BCHW: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Per-sample values [B] of one pass through the VAE with a sampled posterior."""
    vae = model.first_stage_model
    mean, logvar = vae.encode_moments(image_BCHW.to(vae.quant_conv.weight.dtype))
    noise = draws.normal("autoencode/posterior", mean.shape[1:], device=mean.device, dtype=mean.dtype)
    latent = (mean + torch.exp(0.5 * logvar) * noise) * vae.cfg.scale_factor
    reconstruction, target = vae.decode(latent).float(), image_BCHW.float()
    return {
        "l1": distances.l1(reconstruction, target),
        "sobel": distances.sobel_difference(reconstruction, target),
        "kl": distances.gaussian_kl(mean.float(), logvar.float()),
        "latent_std": mean.float().flatten(1).std(dim=1),
    }


def crop_text(batch: Batch, rows: list[int], side: int, draws: Draws) -> Tensor:
    """Square crops [len(rows), C, side, side], each around a random point on a random line of its picture.

    A picture without text is cropped anywhere; crops are shifted to lie inside the picture.
    """
    height, width = batch.image.shape[-2:]
    if side > min(height, width):
        raise ValueError(f"autoencode.crop = {side}: larger than the pictures ({width}x{height}), choose a smaller one")
    which = draws.integers("autoencode/crop_line", 0, 2**31).tolist()
    across = draws.uniform("autoencode/crop_x", 0.0, 1.0).tolist()
    down = draws.uniform("autoencode/crop_y", 0.0, 1.0).tolist()
    crops = []
    for row, line, u, v in zip(rows, which, across, down, strict=True):
        polygons = batch.polygons[row]
        corners = polygons[line % len(polygons)] if polygons else np.array([[0.0, 0.0], [width, height]])
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        left = _inside(x0 + u * (x1 - x0), side, width)
        top = _inside(y0 + v * (y1 - y0), side, height)
        crops.append(batch.image[row, :, top : top + side, left : left + side])
    return torch.stack(crops)


def _inside(centre: float, side: int, extent: int) -> int:
    """First pixel of a window of ``side`` around ``centre`` that lies inside [0, extent)."""
    return int(min(max(round(float(centre) - side / 2), 0), extent - side))
