"""Metrics of one picture against the reference's picture from the same noise: PSNR, and SSIM outside the text boxes.

A new metric is a function and an entry in PICTURE_METRICS. It then appears in the table, in summary.json (with its 95 %
interval, and by language) and in MLflow.

Shape legend: B batch, C channels, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.batch import Batch
from distill.losses.text_mask import text_share

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
"""Of Wang et al. 2004, for pixels in 0..1."""


def rmse(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square difference of each sample of [B, ...], float64 [B]."""
    difference = first.double() - second.double()
    return difference.flatten(1).square().mean(dim=1).sqrt()


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image of [B, C, H, W] in [0, 1], float64 [B]; inf where equal."""
    return -20.0 * rmse(image, reference).log10()


def background_similarity(image: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """Mean SSIM (Wang et al. 2004, equation 13, over the three colours) where no window touches a text box.

    Few steps blur textures and move clutter, which no OCR engine notices. image, reference: [B, 3, H, W] in [0, 1].
    Returns float32 [B] in -1..1 on their device, 1 where equal; NaN where the text boxes leave no room.
    """
    similar = ssim_map(image.float(), reference.float()).mean(dim=1)
    text = text_share(batch, *image.shape[-2:])
    free = F.max_pool2d((text > 0).float(), _WINDOW, stride=1)[:, 0] == 0
    return torch.stack([values[where].mean() for values, where in zip(similar, free, strict=True)])


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of every window of 11 x 11 pixels, weighted by a Gaussian, that lies inside: [B, C, H - 10, W - 10]."""
    mean_1, mean_2 = _gaussian_mean(first), _gaussian_mean(second)
    var_1, var_2 = _gaussian_mean(first.square()) - mean_1.square(), _gaussian_mean(second.square()) - mean_2.square()
    covariance = _gaussian_mean(first * second) - mean_1 * mean_2
    luminance = (2.0 * mean_1 * mean_2 + _C1) / (mean_1.square() + mean_2.square() + _C1)
    return luminance * (2.0 * covariance + _C2) / (var_1 + var_2 + _C2)


def _gaussian_mean(values: Tensor) -> Tensor:
    """Each channel blurred with the window. The Gaussian is separable: one dimension after the other is cheaper."""
    distance = torch.arange(_WINDOW, dtype=values.dtype, device=values.device) - _WINDOW // 2
    kernel = torch.exp(-distance.square() / (2.0 * _SIGMA**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, _WINDOW)
    flat = values.flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(flat, kernel), kernel.transpose(2, 3))
    return blurred.reshape(*values.shape[:2], *blurred.shape[-2:])


@dataclass(frozen=True)
class PictureMetric:
    """A number for each picture of a row, compared with the reference row's picture of the same sample.

    measure: (image, reference: [B, 3, H, W] in [0, 1], batch) -> [B]. title and digits: of the table's column.
    skip_undefined: pictures whose value is not finite are left out of the mean, rather than making it undefined.
    """

    measure: Callable[[Tensor, Tensor, Batch], Tensor]
    title: str
    digits: int
    skip_undefined: bool = False


PICTURE_METRICS = {
    "psnr_db": PictureMetric(lambda image, reference, _: psnr(image, reference), "PSNR dB", 2),
    "background": PictureMetric(background_similarity, "background", 3, skip_undefined=True),
}
"""By the metric's name in summary.json."""
