"""Tensors to pictures for people: pixels, the hint that the model was given, and the labelled grid.

Shape legend: B batch, L lines, H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from PIL import Image

from distill.viz.batch_pictures import grid


@dataclass(frozen=True)
class GridRow:
    """Pictures of one sample for people, uint8 RGB [H, W, 3]; `rows` by row key.

    texts: of its lines, as far as they are scored; read: what an OCR engine read in them, by row key and under
    'originals'; empty without one.
    """

    name: str
    original: np.ndarray
    hint: np.ndarray
    rows: dict[str, np.ndarray]
    caption: str = ""
    texts: tuple[str, ...] = ()
    read: dict[str, tuple[str, ...]] = field(default_factory=dict)


def pixels(image: torch.Tensor) -> torch.Tensor:
    """A decoded image [B, 3, H, W], nominally in [-1, 1], as float32 in [0, 1], clamped."""
    return ((image.float() + 1.0) / 2.0).clamp(0.0, 1.0)


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """Images [B, 3, H, W] in [0, 1] as uint8 RGB [B, H, W, 3]."""
    array: np.ndarray = (image * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def hint_picture(position: torch.Tensor, glyph: torch.Tensor) -> np.ndarray:
    """What the model is told about the lines, uint8 RGB [H, W, 3]: boxes grey on black, glyph ink white.

    position: [L, H, W] and glyph: [1, H*g, W*g], both in {0, 1}.
    """
    boxes = position.amax(dim=0).cpu().numpy().astype(np.uint8)
    page = glyph[0].cpu().numpy().astype(np.uint8)
    ink = cv2.resize(page, (boxes.shape[1], boxes.shape[0]), interpolation=cv2.INTER_NEAREST)
    grey = np.where(ink > 0, 255, np.where(boxes > 0, 90, 0)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def picture_grid(shown: Sequence[GridRow], columns: Sequence[tuple[str, str]]) -> Image.Image:
    """One row a sample: original, hint, and then what each of `columns` (row key, label) drew."""
    cells: list[list[Image.Image | None]] = [
        [_picture(cell) for cell in (one.original, one.hint, *(one.rows.get(key) for key, _label in columns))]
        for one in shown
    ]
    return grid(cells, ["original", "position, glyph", *(label for _key, label in columns)])


def _picture(array: np.ndarray | None) -> Image.Image | None:
    return None if array is None else Image.fromarray(array)
