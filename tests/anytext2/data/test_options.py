"""Options of samples, and the resizing of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from anytext2.data.dataset import resize_image
from anytext2.data.options import DatasetConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 100),
        ("resolution", 32),
        ("max_lines", 0),
        ("max_chars", 0),
        ("glyph_scale", 0),
        ("mask_img_prob", 1.2),
        ("color_prob", -0.1),
        ("font_hint_area", (0.9, 0.2)),
    ],
)
def test_impossible_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        DatasetConfig(**{field: value})


def test_resizing_keeps_the_mean() -> None:
    pixels = np.zeros((400, 300, 3), np.uint8)
    pixels[::2] = 200
    assert np.abs(resize_image(pixels, (100, 100)).astype(int) - 100).max() <= 1  # no aliasing
    assert resize_image(pixels[:100, :100], (100, 100)) is not None and resize_image(pixels, (512, 512)).shape == (
        512,
        512,
        3,
    )
