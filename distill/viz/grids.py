"""Sampled pictures for people: tensors to uint8, the position and glyph hint, and the labelled grid of samples.

Shape legend: B batch, L lines, H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from PIL import Image

from distill.viz.batch_pictures import image_grid


@dataclass(frozen=True)
class SampleImages:
    """One sample of the data set, or a prompt, and what was sampled for it; pictures are uint8 RGB [H, W, 3].

    original: None of a prompt for a new picture. sampled: pictures by row key (`SamplingSpec.key`). texts: of the
    scored lines. recognized: what an OCR engine read in these lines, by row key, and under 'originals' in the original;
    empty without an engine.
    """

    name: str
    original: np.ndarray | None
    hint: np.ndarray
    sampled: dict[str, np.ndarray]
    caption: str = ""
    texts: tuple[str, ...] = ()
    recognized: dict[str, tuple[str, ...]] = field(default_factory=dict)


def to_unit_range(image: torch.Tensor) -> torch.Tensor:
    """A decoded image [B, 3, H, W], nominally in [-1, 1], as float32 in [0, 1], clamped."""
    return ((image.float() + 1.0) / 2.0).clamp(0.0, 1.0)


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """Images [B, 3, H, W] in [0, 1] as uint8 RGB [B, H, W, 3]."""
    array: np.ndarray = (image * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def hint_to_image(position: torch.Tensor, glyph: torch.Tensor) -> np.ndarray:
    """The WriteNet's position and glyph input as a picture, uint8 RGB [H, W, 3]: boxes grey on black, ink white.

    position: [L, H, W] and glyph: [1, H*g, W*g], both in {0, 1}.
    """
    boxes = position.amax(dim=0).cpu().numpy().astype(np.uint8)
    page = glyph[0].cpu().numpy().astype(np.uint8)
    ink = cv2.resize(page, (boxes.shape[1], boxes.shape[0]), interpolation=cv2.INTER_NEAREST)
    grey = np.where(ink > 0, 255, np.where(boxes > 0, 90, 0)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def sample_grid(samples: Sequence[SampleImages], columns: Sequence[tuple[str, str]]) -> Image.Image:
    """A grid with one row a sample: original, hint, and the picture of each of `columns` (row key, label).

    Without any original, that column is left out.
    """
    first = ["original"] if any(sample.original is not None for sample in samples) else []
    cells: list[list[Image.Image | None]] = [
        [
            *(_to_image(sample.original) for _ in first),
            _to_image(sample.hint),
            *(_to_image(sample.sampled.get(key)) for key, _ in columns),
        ]
        for sample in samples
    ]
    return image_grid(cells, [*first, "position, glyph", *(label for _key, label in columns)])


def _to_image(array: np.ndarray | None) -> Image.Image | None:
    return None if array is None else Image.fromarray(array)
