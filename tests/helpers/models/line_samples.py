"""Samples with text lines at known places, and bilinear sampling written a second time."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch

from anytext2.core.batch import Batch, Sample
from anytext2.core.rng import Draws
from tests.helpers.models import stub_roles

SIZE = (128, 192)
BOXES = (
    [[20, 50], [100, 50], [100, 66], [20, 66]],
    [[150, 8], [166, 8], [166, 90], [150, 90]],  # read after a turn
    [[30, 90], [120, 112], [117, 124], [27, 102]],
    [[2, 4], [190, 4], [190, 20], [2, 20]],
)


def line_sample(
    index: int, boxes: tuple[int, ...] = (0, 1, 2, 3), texts: tuple[str, ...] = ("AB", "C", "DE", "J")
) -> Sample:
    """A sample of 128 x 192 pixels with ink of noise in some of BOXES."""
    position = torch.zeros(4, *SIZE, dtype=torch.uint8)
    for line, box in enumerate(boxes):
        position[line] = torch.from_numpy(cv2.fillPoly(np.zeros(SIZE, np.uint8), [np.array(BOXES[box], np.int32)], 1))
    noise = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(index)) > 0.6
    return replace(
        stub_roles.make_sample(index, texts[: len(boxes)], max_lines=4),
        image=torch.zeros(3, *SIZE),
        position=position,
        glyph=(position.amax(0, keepdim=True) * noise).byte(),
        font_hint=torch.zeros(1, *SIZE, dtype=torch.uint8),
        inverse_mask=torch.zeros(1, *SIZE, dtype=torch.uint8),
    )


def draws(batch: Batch, epoch: int = 0, seed: int = 3) -> Draws:
    return Draws(seed, (epoch,) * batch.size, batch.index)


def plain_bilinear(image: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """[C, h, w] of the picture [C, H, W] at points [h, w, 2] (x, y), 0 outside; every pixel by its four neighbours."""
    x, y = torch.from_numpy(points).to(image.dtype).unbind(-1)
    total = torch.zeros(image.shape[0], *x.shape, dtype=image.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x.floor().long() + dx, y.floor().long() + dy
            known = (column >= 0) & (column < image.shape[2]) & (row >= 0) & (row < image.shape[1])
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * known
            total = total + image[:, row.clamp(0, image.shape[1] - 1), column.clamp(0, image.shape[2] - 1)] * share
    return total
