"""Letter heights as drawn data sets measure them, and the warning before letters are too small."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from anytext2.glyphs.rasters import default_page_font
from anytext2.glyphs.render import glyph_page_bitmap
from anytext2.synthetic.options import SyntheticConfig
from anytext2.synthetic.picture import draw_picture
from distill.inference.letter_size import check_letter_size, least_height, letter_height
from distill.inference.places import Place, place_from_box, place_from_polygon

SIZE = (512, 512)


@pytest.mark.parametrize(
    ("text", "box", "ink_share"),
    [("Hg", (20, 20, 400, 100), 1.0), ("国", (20, 20, 400, 100), 1.0), ("国国国", (20, 20, 60, 300), 0.333)],
)
def test_a_letter_is_as_high_as_it_is_drawn(text, box, ink_share):
    place = place_from_box(box, SIZE)
    ink = glyph_page_bitmap(text[0], place.polygon, default_page_font(text)).bits
    if len(text) == 1 or text == "Hg":
        ink = glyph_page_bitmap(text, place.polygon, default_page_font(text)).bits
        assert letter_height(place, text) == pytest.approx(ink.shape[0], abs=2)
    else:
        assert letter_height(place, text) == pytest.approx(min(40, 280 * ink_share), rel=0.15)


def test_letters_shrink_with_the_length_of_their_text_and_not_with_its_turn():
    wide = place_from_box((20, 20, 300, 80), SIZE)
    turned = place_from_polygon(cv2.boxPoints(((250, 250), (280, 60), 30)), SIZE)
    assert letter_height(wide, "OPENING HOURS") < letter_height(wide, "OPEN")
    assert letter_height(turned, "OPENING HOURS") == pytest.approx(letter_height(wide, "OPENING HOURS"), rel=0.05)


def test_the_letters_of_drawn_data_are_as_large_as_its_options_say():
    config = SyntheticConfig(default_font=1.0)
    for index in range(12):
        for line in draw_picture(3, index, config).lines:
            least = least_height(line.text, config.latin_height[0])
            assert letter_height(Place(line.polygon), line.text) > least - 1.5, line.text


def test_letters_that_are_too_small_are_told_with_the_limit():
    places = [place_from_box(box, SIZE) for box in ((0, 0, 500, 100), (0, 200, 60, 230), (0, 300, 40, 322))]
    texts = ["LARGE", "small text", "你好"]
    notes = check_letter_size(places, texts, 40, "the tiny model")
    assert len(notes) == 2
    assert notes[0].startswith('"small text": letters would be ') and "the tiny model writes from 40" in notes[0]
    assert "writes from 30" in notes[1]
    assert check_letter_size(places, texts, 0) == []
    assert check_letter_size(places[:1], [" "], 400) == []


def test_a_text_without_a_glyph_is_no_reason_to_fail():
    assert np.isfinite(letter_height(place_from_box((0, 0, 100, 40), SIZE), "\U0001f680"))
