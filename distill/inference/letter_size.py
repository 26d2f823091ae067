"""How large the letters of a text become in its place, and whether the model can write them.

A letter's height is measured as in drawn data sets: from the top of an H to the bottom of a g, of Chinese, Japanese and
Korean texts that of a full character. It does not depend on the letters that a text happens to have.
"""

from __future__ import annotations

from collections.abc import Sequence

from anytext2.glyphs import render
from anytext2.glyphs.fonts import REFERENCE_SIZE, Font
from anytext2.glyphs.rasters import default_page_font
from distill.inference.places import Place
from distill.inference.quotes import contains_cjk

CJK_SHARE = 0.75
"""Least height of a Chinese character, in least heights of Latin letters: the tiny model was trained from 30 and 40
pixels. A character without ascender and descender fills its height."""


def letter_height(place: Place, text: str, font: Font | None = None) -> float:
    """The height in pixels of the letters of `text` in its place. font: of the glyph page; by default the first."""
    font = font or default_page_font(text)
    size = render.glyph_page_font_size(font.supported(text) or text, place.polygon, font)
    return size * letter_share(text, font)


def check_letter_size(
    places: Sequence[Place], texts: Sequence[str], limit: float, model: str = "the model"
) -> list[str]:
    """One line for each text whose letters would be smaller than the model writes.

    limit: least height of Latin letters in pixels; of Chinese characters, CJK_SHARE of it. model: how to call it, such
    as 'the tiny model'.
    """
    notes = []
    for place, text in zip(places, texts, strict=True):
        height, least = letter_height(place, text), least_height(text, limit)
        if text.strip() and round(height) < round(least):
            notes.append(
                f'"{text}": letters would be {height:.0f} px high; {model} writes from {least:.0f}: '
                "make the place larger, or the text shorter"
            )
    return notes


def least_height(text: str, limit: float) -> float:
    """The least height in pixels of the letters of a text; limit: that of Latin letters."""
    return limit * CJK_SHARE if contains_cjk(text) else limit


def letter_share(text: str, font: Font) -> float:
    """Height of the letters of a text's script in a font, in em."""
    return font.ink_box("国" if contains_cjk(text) else "Hg").height / REFERENCE_SIZE
