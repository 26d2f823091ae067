"""The bitmaps of a record's lines that do not change between epochs: glyph page in each font, glyph line, strokes.

`RenderedRasters` draws them on demand, in our way or in the reference's, `StoredRasters` reads them from bytes that
`pack_rasters` wrote. The dataset makes the random choices (font, part of the strokes, transform).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np

from anytext2.core.batch import TextLine
from anytext2.glyphs import reference_render, render
from anytext2.glyphs.fonts import Font, FontTable, load_font_table
from anytext2.glyphs.languages import infer_language
from anytext2.glyphs.render import Bitmap, HintTransform

_BITMAP = struct.Struct("<HHHH")  # left, top, width, height; the bits follow, eight to a byte
_COUNT = struct.Struct("<H")
_MAX_COORDINATE = 2**16 - 1


class LineRasters(Protocol):
    """The bitmaps of a record's lines in pixels of the sample. `line` is the line's number in the record."""

    def n_fonts(self, line: int) -> int:
        """Number of fonts (at least one) in which the line is drawn on the glyph page."""

    def glyph_page(self, line: int, font: int) -> Bitmap:
        """The line drawn into its polygon on the glyph page, in font number `font` < n_fonts."""

    def glyph_line(self, line: int, font: int) -> Bitmap:
        """The line drawn alone on a canvas of GLYPH_LINE_SIZE, for the recogniser.

        Its font is always the same one, except as in the reference: there it is that of the glyph page, number `font`.
        """

    def strokes(self, line: int, transform: HintTransform | None) -> Bitmap:
        """The strokes of the line in the picture, for the font hint; see `stroke_bitmap`."""


@dataclass(frozen=True)
class RenderedRasters:
    """Draws the bitmaps, without the characters that a font has no glyph for.

    lines: all lines of the record; their texts are cut to max_chars, their polygons are in pixels of `pixels`.
    pixels: the picture, uint8 [H, W, 3]. glyph_scale, ink_threshold, like_reference: see `DatasetConfig`.
    """

    lines: Sequence[TextLine]
    pixels: np.ndarray
    fonts: FontTable
    glyph_scale: int
    ink_threshold: float
    like_reference: bool = False

    def n_fonts(self, line: int) -> int:
        return len(self._page_fonts(line))

    def glyph_page(self, line: int, font: int) -> Bitmap:
        text, page_font = self.lines[line].text, self._page_fonts(line)[font]
        polygon = self.lines[line].polygon * self.glyph_scale
        if self.like_reference:
            size = (self.pixels.shape[0] * self.glyph_scale, self.pixels.shape[1] * self.glyph_scale)
            text, color = page_font.supported(text, joiners=True), self.lines[line].color
            return reference_render.glyph_page_bitmap(text, polygon, size, page_font, color)
        return render.glyph_page_bitmap(page_font.supported(text), polygon, page_font, self.ink_threshold)

    def glyph_line(self, line: int, font: int) -> Bitmap:
        text = self.lines[line].text
        if self.like_reference:
            page_font = self._page_fonts(line)[font]
            return reference_render.glyph_line_bitmap(page_font.supported(text, joiners=True), page_font)
        line_font = glyph_line_font(text, self.lines[line].language, self.fonts)
        return render.glyph_line_bitmap(line_font.supported(text), line_font)

    def strokes(self, line: int, transform: HintTransform | None) -> Bitmap:
        return render.stroke_bitmap(self.pixels, self.lines[line].polygon, transform)

    def _page_fonts(self, line: int) -> tuple[Font, ...]:
        return glyph_page_fonts(self.lines[line].text, self.lines[line].language, self.fonts)


@dataclass(frozen=True)
class StoredRasters:
    """Reads the bytes that `pack_rasters` wrote. A transform is applied to the stored strokes, not to the picture.

    offsets: for each line the byte offsets of its bitmaps: glyph line, strokes, glyph page in each font.
    like_reference: the glyph lines in the other fonts follow.
    """

    content: bytes
    offsets: tuple[tuple[int, ...], ...]
    like_reference: bool

    @classmethod
    def unpack(cls, content: bytes, like_reference: bool = False) -> StoredRasters:
        """Finds the bitmaps in the bytes; they are decoded when they are read."""
        (n_lines,) = _COUNT.unpack_from(content, 0)
        at, lines = _COUNT.size, []
        for _ in range(n_lines):
            (n_bitmaps,) = _COUNT.unpack_from(content, at)
            at += _COUNT.size
            offsets = []
            for _ in range(n_bitmaps):
                offsets.append(at)
                _, _, width, height = _BITMAP.unpack_from(content, at)
                at += _BITMAP.size + (width * height + 7) // 8
            lines.append(tuple(offsets))
        assert at == len(content), f"the bitmaps end at byte {at} of {len(content)}"
        return cls(content, tuple(lines), like_reference)

    def n_fonts(self, line: int) -> int:
        return len(self.offsets[line]) // 2 if self.like_reference else len(self.offsets[line]) - 2

    def glyph_page(self, line: int, font: int) -> Bitmap:
        return _unpack_bitmap(self.content, self.offsets[line][2 + font])

    def glyph_line(self, line: int, font: int) -> Bitmap:
        at = 1 + self.n_fonts(line) + font if self.like_reference and font else 0
        return _unpack_bitmap(self.content, self.offsets[line][at])

    def strokes(self, line: int, transform: HintTransform | None) -> Bitmap:
        bitmap = _unpack_bitmap(self.content, self.offsets[line][1])
        if transform is None or not bitmap.bits.size:
            return bitmap
        return Bitmap(transform.apply(bitmap.bits, cv2.INTER_NEAREST), bitmap.left, bitmap.top)


def pack_rasters(rasters: RenderedRasters) -> bytes:
    """All bitmaps of all lines as bytes; the strokes without a transform."""
    chunks = [_COUNT.pack(len(rasters.lines))]
    for line in range(len(rasters.lines)):
        fonts = range(rasters.n_fonts(line))
        bitmaps = [rasters.glyph_line(line, 0), rasters.strokes(line, None)]
        bitmaps += [rasters.glyph_page(line, font) for font in fonts]
        bitmaps += [rasters.glyph_line(line, font) for font in fonts[1:] if rasters.like_reference]
        chunks.append(_COUNT.pack(len(bitmaps)))
        chunks.extend(map(_pack_bitmap, bitmaps))
    return b"".join(chunks)


@lru_cache(maxsize=65536)
def glyph_line_font(text: str, language: str, fonts: FontTable) -> Font:
    """The font of a glyph line: the first of the default font and the language's fonts that has all characters.

    If none has, the default font.
    """
    candidates = (fonts.default, *fonts.fonts_for(language))
    return next((font for font in candidates if not font.missing_characters(text)), fonts.default)


@lru_cache(maxsize=65536)
def is_drawable(text: str, language: str, fonts: FontTable) -> bool:
    """Whether the text is blank or its glyph line's font has a glyph for at least one character."""
    return not text.strip() or bool(glyph_line_font(text, language, fonts).supported(text).strip())


@lru_cache(maxsize=65536)
def glyph_page_fonts(text: str, language: str, fonts: FontTable) -> tuple[Font, ...]:
    """The language's fonts that have all characters and, for lower-case text, lower-case letters.

    If there is none, the font of the glyph line.
    """
    lower_case = text != text.upper()
    suitable = tuple(
        font
        for font in fonts.fonts_for(language)
        if not font.missing_characters(text) and not (font.capitals and lower_case)
    )
    return suitable or (glyph_line_font(text, language, fonts),)


def default_page_font(text: str) -> Font:
    """The first font of the shipped table that the glyph page may have for a text, in the language of its script."""
    return glyph_page_fonts(text, infer_language(text), _shipped_fonts())[0]


@lru_cache(maxsize=1)
def _shipped_fonts() -> FontTable:
    return load_font_table()


def _pack_bitmap(bitmap: Bitmap) -> bytes:
    """The part of a bitmap with coordinates in 0..65535, in binary form."""
    x, y = max(0, -bitmap.left), max(0, -bitmap.top)
    bits = bitmap.bits[y : max(y, _MAX_COORDINATE - bitmap.top), x : max(x, _MAX_COORDINATE - bitmap.left)]
    height, width = bits.shape
    if not bits.size:
        return _BITMAP.pack(0, 0, 0, 0)
    return _BITMAP.pack(bitmap.left + x, bitmap.top + y, width, height) + np.packbits(bits).tobytes()


def _unpack_bitmap(content: bytes, at: int) -> Bitmap:
    left, top, width, height = _BITMAP.unpack_from(content, at)
    n_bits = width * height
    packed = np.frombuffer(content, np.uint8, count=(n_bits + 7) // 8, offset=at + _BITMAP.size)
    return Bitmap(np.unpackbits(packed, count=n_bits).reshape(height, width), left, top)
