"""Automatic layouts: inside the margins, without overlap, as large as letters must be, the same for the same seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from anytext2.synthetic.options import SyntheticConfig
from distill.inference.layout import MARGINS, automatic_layout
from distill.inference.letter_size import CJK_SHARE, check_letter_size, letter_height

TINY_LATIN, TINY_CHINESE = SyntheticConfig().latin_height[0], SyntheticConfig().chinese_height[0]

CASES = [
    (["OPEN"], (128, 128), 40),
    (["OPEN", "你好"], (128, 128), 40),
    (["coffee", "Tea", "茶"], (128, 128), 40),
    (["你好", "世界", "OK"], (128, 128), 40),
    (["GRAND OPENING", "Saturday 9 am", "FREE COFFEE"], (512, 512), 20),
    (["去火星旅行", "王小明", "11月1日", "A", "B"], (512, 512), 20),
    (["SALE", "50% OFF", "today only"], (768, 256), 20),
    (["twenty characters ok", "."], (320, 640), 0),
    (list("ABCDEFGHIJKL"), (512, 512), 24),
]


@pytest.mark.parametrize(("texts", "size", "least"), CASES, ids=lambda value: str(value)[:24])
def test_places_are_inside_apart_and_large_enough(texts, size, least):
    for seed in range(12):
        places = automatic_layout(texts, size, seed, least)
        boxes = [(*place.polygon.min(0), *place.polygon.max(0)) for place in places]
        assert len(boxes) == len(texts)
        margin = max(4, MARGINS[-1] * min(size)) - 1
        for left, top, right, bottom in boxes:
            assert left >= margin and top >= margin and right <= size[0] - margin and bottom <= size[1] - margin
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (seed, a, b)
        assert check_letter_size(places, texts, least) == []


def test_texts_stand_in_reading_order():
    for seed, (texts, size, least) in itertools.product(range(8), CASES):
        corners = [place.polygon.mean(0) for place in automatic_layout(texts, size, seed, least)]
        for before, after in itertools.pairwise(corners):
            is_below, is_right = after[1] > before[1] + 8, after[0] > before[0]
            assert is_below or is_right


def test_a_layout_depends_on_its_seed_alone():
    layouts = [
        np.stack([place.polygon for place in automatic_layout(["OPEN", "24 HOURS"], (512, 512), seed)])
        for seed in (1, 1, 2, 3, 4)
    ]
    np.testing.assert_array_equal(layouts[0], layouts[1])
    assert len({layout.tobytes() for layout in layouts}) == 4


def test_short_texts_are_larger_than_long_ones():
    (short,), (long,) = automatic_layout(["UP"], (512, 512), 3), automatic_layout(["a much longer text"], (512, 512), 3)
    assert letter_height(short, "UP") > 2.5 * letter_height(long, "a much longer text")


def test_texts_stand_side_by_side_in_a_wide_picture():
    first, second = automatic_layout(["ONE", "TWO"], (1024, 128), 0)
    assert first.polygon[:, 0].max() < second.polygon[:, 0].min()


@pytest.mark.parametrize(
    ("texts", "size", "told"),
    [
        (
            ["HELLO"],
            (128, 128),
            'HELLO" in letters of 40 px is wider than a picture of 128 x 128; write "Hello", or use ',
        ),
        (["INTERNATIONAL"], (128, 128), "shorten it to about 4 characters, or use a picture of 384 x 384"),
        (
            list("ABCDEFGHIJKL"),
            (128, 128),
            "12 texts in letters of 40 px do not fit in a picture of 128 x 128; write 6 of",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(texts, size, told):
    with pytest.raises(ValueError) as caught:
        automatic_layout(texts, size, 0, 40)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_no_text_needs_no_place():
    assert automatic_layout([], (512, 512), 0) == []


def test_the_share_of_chinese_letters_is_that_of_drawn_data():
    assert pytest.approx(TINY_CHINESE / TINY_LATIN) == CJK_SHARE
