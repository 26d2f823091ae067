"""Maps of latent size of the text boxes and the ignored text of a batch.

Shape legend: B batch, L lines, H/W pixels, h/w latent cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.batch import Batch

_REACH = 3
"""Width in cells of a soft window's edge: the box grows by one cell on each side."""


def text_share(batch: Batch, height: int, width: int) -> Tensor:
    """The share of each cell inside a line's box, float32 [B,1,h,w] in 0..1."""
    boxes = batch.position.amax(dim=1, keepdim=True).float()
    return F.adaptive_avg_pool2d(boxes, (height, width))


def not_ignored(batch: Batch, height: int, width: int) -> Tensor:
    """1 outside ignored text, else 0, float32 [B,1,h,w] (nearest, as AnyText2)."""
    return 1.0 - F.interpolate(batch.inverse_mask.float(), size=(height, width), mode="nearest")


def soft_window(batch: Batch, height: int, width: int) -> Tensor:
    """`text_share` widened by a cell and blurred, float32 [B,1,h,w] in 0..1.

    A hard edge would add frequencies and gradients of its own.
    """
    wide = F.max_pool2d(text_share(batch, height, width), _REACH, stride=1, padding=_REACH // 2)
    binomial = torch.tensor([0.25, 0.5, 0.25], device=wide.device)
    kernel = torch.outer(binomial, binomial).reshape(1, 1, 3, 3)
    return F.conv2d(F.pad(wide, (1, 1, 1, 1), mode="replicate"), kernel)
