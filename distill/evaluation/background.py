"""What happens around the words: structural similarity of two pictures outside the text boxes.

Few steps blur textures and move clutter, which no reading of the text notices.

Shape legend: B batch, C channels, H/W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.batch import Batch
from distill.losses.text_mask import text_share

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
"""Of Wang et al. 2004, for pixels in 0..1."""


def background_similarity(image: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """Mean SSIM (Wang et al. 2004, equation 13, over the three colours) where no window touches a text box.

    image, reference: [B, 3, H, W] in [0, 1]. float32 [B] in -1..1 on their device, 1: the same; NaN where text leaves
    no room.
    """
    similar = ssim_map(image.float(), reference.float()).mean(dim=1)
    text = text_share(batch, *image.shape[-2:])
    free = F.max_pool2d((text > 0).float(), _WINDOW, stride=1)[:, 0] == 0
    return torch.stack([values[where].mean() for values, where in zip(similar, free, strict=True)])


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of every window of 11 x 11 pixels, weighted by a Gaussian, that lies inside: [B, C, H - 10, W - 10]."""
    mean_1, mean_2 = _blurred(first), _blurred(second)
    var_1, var_2 = _blurred(first.square()) - mean_1.square(), _blurred(second.square()) - mean_2.square()
    covariance = _blurred(first * second) - mean_1 * mean_2
    luminance = (2.0 * mean_1 * mean_2 + _C1) / (mean_1.square() + mean_2.square() + _C1)
    return luminance * (2.0 * covariance + _C2) / (var_1 + var_2 + _C2)


def _blurred(values: Tensor) -> Tensor:
    """Each channel's Gaussian mean; one dimension after the other, which is the same and cheaper."""
    distance = torch.arange(_WINDOW, dtype=values.dtype, device=values.device) - _WINDOW // 2
    kernel = torch.exp(-distance.square() / (2.0 * _SIGMA**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, _WINDOW)
    flat = values.flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(flat, kernel), kernel.transpose(2, 3))
    return blurred.reshape(*values.shape[:2], *blurred.shape[-2:])
