"""What every fuzzed input must give: a valid sample or a counted reason, in a short time."""

from __future__ import annotations

import time

import numpy as np
import torch

from anytext2.core.batch import UNSET_COLOR, Sample, collate
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table

FONTS = load_font_table()
CONFIG = DatasetConfig(resolution=64, max_lines=2)
SECONDS = 5.0


def assert_valid(sample: Sample) -> None:
    batch = collate([sample]).normalized()
    side, lines = CONFIG.resolution, CONFIG.max_lines
    shapes = {
        "image": (1, 3, side, side),
        "masked_image": (1, 3, side, side),
        "glyph": (1, 1, side, side),
        "position": (1, lines, side, side),
        "glyph_line": (1, lines, 80, 512),
        "font_hint": (1, 1, side, side),
        "inverse_mask": (1, 1, side, side),
        "color": (1, lines, 3),
    }
    for name, shape in shapes.items():
        value = getattr(batch, name)
        assert value.shape == shape, name
        if name not in ("image", "masked_image", "color"):
            assert value.dtype == torch.uint8 and int(value.max()) <= 1, name
    for picture in (batch.image, batch.masked_image):
        assert float(picture.min()) >= -1 and float(picture.max()) <= 1  # which NaN is not
    color = sample.color.numpy()
    assert ((color == UNSET_COLOR) | ((color >= 0) & (color <= 255))).all()
    assert 1 <= sample.n_lines <= lines and all(len(text) <= CONFIG.max_chars for text in sample.texts)
    for polygon in sample.polygons:
        assert np.isfinite(polygon).all() and np.abs(polygon).max() <= 2 * side
    "".join([sample.image_caption, *sample.texts, *sample.languages]).encode("utf-8")


def outcome_of(dataset: AnyWordDataset, index: int, epoch: int) -> str:
    """'' for a valid sample, else the reason why there is none."""
    start = time.process_time()
    try:
        sample = dataset.sample(index, epoch)
    except SampleError as error:
        assert "\n" not in str(error)
        return error.reason
    finally:
        assert time.process_time() - start < SECONDS, dataset.records[index]
    assert_valid(sample)
    return ""
