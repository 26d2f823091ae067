"""What is drawn once for a picture's lines and kept: page ink in every font, glyph line, strokes for the font hint.

`RenderedRasters` draws them when they are asked for, `StoredRasters` reads them from bytes that `pack_rasters` made.
Everything random (which font, which part of the strokes, which edge) is left to whoever assembles a sample of them.
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
from anytext2.glyphs import render
from anytext2.glyphs.fonts import Font, FontTable
from anytext2.glyphs.render import Bitmap, HintTransform

_INK = struct.Struct("<HHHH")  # left, top, width, height; the bits follow, eight to a byte
_COUNT = struct.Struct("<H")
_FARTHEST = 2**16 - 1


class LineRasters(Protocol):
    """Ink of the lines of one record, by their number in it, in pixels of the sample."""

    def n_fonts(self, line: int) -> int:
        """With how many fonts the line's page ink exists (at least one)."""

    def page(self, line: int, font: int) -> Bitmap:
        """The line in its place on the glyph page, drawn with the given one of its fonts."""

    def glyph_line(self, line: int) -> Bitmap:
        """The line alone, as the recogniser sees it."""

    def strokes(self, line: int, change: HintTransform | None) -> Bitmap:
        """What is dark in the picture at the line, after the change (None: as it is)."""


@dataclass(frozen=True)
class RenderedRasters:
    """Draws, leaving out the characters that the font has no glyph for.

    lines: all lines of the record, texts cut, polygons in pixels of `pixels`, the picture uint8 [H, W, 3].
    """

    lines: Sequence[TextLine]
    pixels: np.ndarray
    fonts: FontTable
    glyph_scale: int
    ink_threshold: float

    def n_fonts(self, line: int) -> int:
        return len(glyph_page_fonts(self.lines[line].text, self.lines[line].language, self.fonts))

    def page(self, line: int, font: int) -> Bitmap:
        one = self.lines[line]
        face = glyph_page_fonts(one.text, one.language, self.fonts)[font]
        return render.glyph_page_bitmap(
            face.supported(one.text), one.polygon * self.glyph_scale, face, self.ink_threshold
        )

    def glyph_line(self, line: int) -> Bitmap:
        one = self.lines[line]
        face = glyph_line_font(one.text, one.language, self.fonts)
        return render.glyph_line_bitmap(face.supported(one.text), face)

    def strokes(self, line: int, change: HintTransform | None) -> Bitmap:
        return render.stroke_bitmap(self.pixels, self.lines[line].polygon, change)


@dataclass(frozen=True)
class StoredRasters:
    """Reads what `pack_rasters` wrote. A change is applied to the stored strokes, not to the picture they come from."""

    content: bytes
    lines: tuple[tuple[int, ...], ...]
    """For each line, the offsets of its inks: glyph line, strokes, then the pages."""

    @classmethod
    def unpack(cls, content: bytes) -> StoredRasters:
        (n_lines,) = _COUNT.unpack_from(content, 0)
        at, lines = _COUNT.size, []
        for _ in range(n_lines):
            (n_inks,) = _COUNT.unpack_from(content, at)
            at += _COUNT.size
            offsets = []
            for _ in range(n_inks):
                offsets.append(at)
                _, _, width, height = _INK.unpack_from(content, at)
                at += _INK.size + (width * height + 7) // 8
            lines.append(tuple(offsets))
        assert at == len(content), f"{len(content)} bytes hold {at}"
        return cls(content, tuple(lines))

    def n_fonts(self, line: int) -> int:
        return len(self.lines[line]) - 2

    def page(self, line: int, font: int) -> Bitmap:
        return _unpack_ink(self.content, self.lines[line][2 + font])

    def glyph_line(self, line: int) -> Bitmap:
        return _unpack_ink(self.content, self.lines[line][0])

    def strokes(self, line: int, change: HintTransform | None) -> Bitmap:
        ink = _unpack_ink(self.content, self.lines[line][1])
        if change is None or not ink.bits.size:
            return ink
        return Bitmap(change.apply(ink.bits, cv2.INTER_NEAREST), ink.left, ink.top)


def pack_rasters(parts: LineRasters, n_lines: int) -> bytes:
    """All parts of all lines as bytes, the strokes unchanged."""
    chunks = [_COUNT.pack(n_lines)]
    for line in range(n_lines):
        pages = [parts.page(line, font) for font in range(parts.n_fonts(line))]
        chunks.append(_COUNT.pack(2 + len(pages)))
        chunks.extend(_pack_ink(ink) for ink in (parts.glyph_line(line), parts.strokes(line, None), *pages))
    return b"".join(chunks)


@lru_cache(maxsize=65536)
def glyph_line_font(text: str, language: str, fonts: FontTable) -> Font:
    """The font of glyph lines: the default one, or one of the language's that has characters which that lacks."""
    candidates = (fonts.default, *fonts.fonts_for(language))
    return next((font for font in candidates if not font.missing_characters(text)), fonts.default)


@lru_cache(maxsize=65536)
def is_drawable(text: str, language: str, fonts: FontTable) -> bool:
    """Whether there is a glyph for any of its characters, or nothing to draw."""
    return not text.strip() or bool(glyph_line_font(text, language, fonts).supported(text).strip())


@lru_cache(maxsize=65536)
def glyph_page_fonts(text: str, language: str, fonts: FontTable) -> tuple[Font, ...]:
    """The language's fonts that have the characters and keep their case; without any, that of the glyph line."""
    small_letters = text != text.upper()
    able = tuple(
        font
        for font in fonts.fonts_for(language)
        if not font.missing_characters(text) and not (font.capitals and small_letters)
    )
    return able or (glyph_line_font(text, language, fonts),)


def _pack_ink(ink: Bitmap) -> bytes:
    """What lies left of a page or above it is never seen and not kept, nor what 16 bits cannot place."""
    x, y = max(0, -ink.left), max(0, -ink.top)
    bits = ink.bits[y : max(y, _FARTHEST - ink.top), x : max(x, _FARTHEST - ink.left)]
    height, width = bits.shape
    if not bits.size:
        return _INK.pack(0, 0, 0, 0)
    return _INK.pack(ink.left + x, ink.top + y, width, height) + np.packbits(bits).tobytes()


def _unpack_ink(content: bytes, at: int) -> Bitmap:
    left, top, width, height = _INK.unpack_from(content, at)
    n_bits = width * height
    packed = np.frombuffer(content, np.uint8, count=(n_bits + 7) // 8, offset=at + _INK.size)
    return Bitmap(np.unpackbits(packed, count=n_bits).reshape(height, width), left, top)
