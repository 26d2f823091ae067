"""Losses as per-sample values [B]: the mean over each sample's elements, optionally with a weight map.

A weight multiplies the elements and does not change the divisor, so a masked area lowers the loss and leaves the rest
as it is (AnyText2 multiplies by ``1 - inv_mask`` in the same way).

Shape legend: B batch, C channels, H/W pixels or latent cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def per_sample_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all dimensions but the first; ``weight`` broadcasts over ``values`` [B, ...]."""
    weighted = values if weight is None else values * weight
    return weighted.flatten(1).mean(dim=1)


def l2(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference [B]."""
    return per_sample_mean((prediction - target).square(), weight)


def l1(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference [B]."""
    return per_sample_mean((prediction - target).abs(), weight)


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 1e-3, weight: Tensor | None = None) -> Tensor:
    """Mean of ``sqrt(d^2 + c^2) - c`` [B] (Song and Dhariwal 2023, section 3.3).

    Computed as ``d^2 / (sqrt(d^2 + c^2) + c)``, the same number without the cancellation that costs a float32 loss its
    digits where d is far below c.
    """
    squared = (prediction - target).square()
    return per_sample_mean(squared / ((squared + c * c).sqrt() + c), weight)


def sobel_difference(prediction_BCHW: Tensor, target_BCHW: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the horizontal and vertical Sobel gradients [B]; the border repeats its pixels.

    Gradients are in value per pixel (the kernel is divided by 8), so that the term is comparable with an L1.
    ``weight`` [B,1,H,W] is of the gradient's centre pixel.
    """
    # The filter is linear: one pass over the difference instead of two over the images.
    difference = prediction_BCHW - target_BCHW
    channels = difference.shape[1]
    horizontal = torch.tensor(_SOBEL, dtype=difference.dtype, device=difference.device) / 8.0
    kernels = torch.stack([horizontal, horizontal.T]).unsqueeze(1).repeat(channels, 1, 1, 1)
    padded = F.pad(difference, (1, 1, 1, 1), mode="replicate")
    return per_sample_mean(F.conv2d(padded, kernels, groups=channels).abs(), weight)


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats per element [B] (Kingma and Welling 2014, appendix B)."""
    return per_sample_mean(0.5 * (mean.square() + logvar.exp() - 1.0 - logvar))
