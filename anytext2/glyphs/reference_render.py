"""Draws glyph lines and glyph pages as AnyText2's dataset code does, pixel for pixel (`data.options.like_reference`).

The official checkpoint was trained on these drawings. anytext2/glyphs/render.py draws the same maps larger and better
centred; docs/DATA.md lists the differences. Here the code is new, the arithmetic is the reference's, with its rounding:

- text is laid out by Pillow's raqm layout, which kerns and shapes;
- the glyph page's font size is the greatest that a binary search finds to fit the polygon's minimum-area rectangle, in
  one row also for text that is then written from top to bottom;
- a row is spread by as many blanks between its characters as fit, a column by equal gaps;
- the page is drawn in the line's colour, antialiased, rotated by the nearest pixel and pasted; what is not black after
  that is ink.

Not taken over: boxes for characters without a glyph. The caller leaves these characters out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from anytext2.core.batch import GLYPH_LINE_SIZE
from anytext2.glyphs.fonts import MAX_FONT_SIZE, REFERENCE_SIZE, Font
from anytext2.glyphs.render import EMPTY_BITMAP, UPRIGHT_DEGREES, Bitmap

_FILL = 0.9  # share of the glyph line's height and width that a text may take
_LEAST_EXTENT = 5  # pixels that a text is taken to measure at least on a glyph line
_MAX_BLANKS = 98  # between two characters; a row that would need more is not spread at all
_DARKEST, _BRIGHTEST = 10, 255  # limits of a colour's channels; an unknown colour is white

_Face = ImageFont.FreeTypeFont


def require_raqm() -> None:
    """Raises ValueError unless Pillow can lay out text with raqm."""
    if not features.check("raqm"):
        raise ValueError(
            "data.options.like_reference: true needs Pillow's raqm layout, which this Pillow lacks; install Pillow's "
            "wheel from PyPI (pip install --force-reinstall pillow) or libraqm, or set like_reference=false"
        )


def glyph_line_bitmap(text: str, font: Font) -> Bitmap:
    """The text alone on a canvas of GLYPH_LINE_SIZE. Blank text gives no bitmap."""
    if not text.strip():
        return EMPTY_BITMAP
    height, width = GLYPH_LINE_SIZE
    left, top, right, bottom = _face(font.path, REFERENCE_SIZE).getbbox(text)
    ratio = min(_FILL * width / max(right - left, _LEAST_EXTENT), _FILL * height / max(bottom - top, _LEAST_EXTENT))
    face = _face(font.path, min(max(1, int(REFERENCE_SIZE * ratio)), MAX_FONT_SIZE))
    left, top, right, bottom = face.getbbox(text)
    canvas = Image.new("1", (width, height))
    # The reference measures the height from the ascender line and takes half of the space above the ink off again.
    origin = ((width - (right - left)) // 2, (height - bottom) // 2 - top // 2)
    ImageDraw.Draw(canvas).text(origin, text, font=face, fill=1)
    return _ink_bitmap(np.asarray(canvas))


def glyph_page_bitmap(
    text: str, polygon: np.ndarray, size: tuple[int, int], font: Font, color: tuple[int, int, int] | None
) -> Bitmap:
    """The text drawn into its polygon [P, 2] of a page of `size` (H, W). color: of the line, None if unknown.

    A text that does not fit at two pixels per em gives no bitmap, as in the reference.
    """
    if not text.strip():
        return EMPTY_BITMAP
    frame = _text_frame(polygon)
    font_size = _font_size(text, frame, font)
    if font_size < 1:
        return EMPTY_BITMAP
    face = _face(font.path, font_size)
    coverage = (_draw_column if frame.is_column else _draw_row)(text, frame, face, size)
    # Of the colour times the coverage, rounded to 0..255, something is left.
    level = _BRIGHTEST if color is None else min(max(*color, _DARKEST), _BRIGHTEST)
    return _ink_bitmap(np.asarray(coverage) >= math.ceil(128 / level))


def is_column(polygon: np.ndarray) -> bool:
    """Whether a text of the polygon [P, 2] is written from top to bottom. Such a text may leave its polygon."""
    return _text_frame(polygon).is_column


@dataclass(frozen=True)
class _Frame:
    """A polygon's minimum-area rectangle.

    degrees: counterclockwise, by which a row is rotated. left, top, width: of its bounding box in whole pixels.
    is_column: the text is written from top to bottom.
    """

    center: tuple[float, float]
    long: float
    short: float
    degrees: float
    left: int
    top: int
    width: int
    is_column: bool


def _text_frame(polygon: np.ndarray) -> _Frame:
    rectangle = cv2.minAreaRect(np.float32(polygon))
    (x, y), (width, height), angle = rectangle
    while angle <= 0:  # OpenCV 4.5 to 4.12 return angles in (0, 90], other versions in [-90, 0)
        width, height, angle = height, width, angle + 90
    degrees = -angle if width >= height else 90 - angle
    corners = cv2.boxPoints(rectangle).astype(int)
    (left, top), (box_width, box_height) = corners.min(axis=0).tolist(), np.ptp(corners, axis=0).tolist()
    is_upright = min(angle, 90 - angle) < UPRIGHT_DEGREES
    long, short = max(width, height), min(width, height)
    return _Frame((x, y), long, short, degrees, left, top, box_width, is_upright and box_height >= box_width)


def _font_size(text: str, frame: _Frame, font: Font) -> int:
    """One less than the least size that a binary search finds not to fit; below the rectangle's short side. 0: none."""
    fits, too_large = 1, min(int(frame.short), MAX_FONT_SIZE)
    while fits < too_large:
        size = (fits + too_large) // 2
        if _fits(text, frame, _face(font.path, size)):
            fits = size + 1
        else:
            too_large = size
    return too_large - 1


def _fits(text: str, frame: _Frame, face: _Face) -> bool:
    left, top, right, bottom = face.getbbox(text)
    return right - left <= frame.long and bottom - top <= frame.short


def _draw_row(text: str, frame: _Frame, face: _Face, size: tuple[int, int]) -> Image.Image:
    """Coverage 0..255 on a page of `size` (H, W): the text around the rectangle's centre, spread and rotated."""
    # More blanks are wider, so that the first number that does not fit can be found by bisection.
    numbers = range(1, _MAX_BLANKS + 2)
    n_fitting = bisect_left(numbers, True, key=lambda blanks: not _fits((" " * blanks).join(text), frame, face))
    if n_fitting < len(numbers):
        text = (" " * n_fitting).join(text)
    left, top, right, bottom = face.getbbox(text)
    layer = Image.new("L", (size[1], size[0]))
    x, y = frame.center[0] - (right - left) / 2, frame.center[1] - (bottom - top) / 2 - top
    # Pillow draws at 64ths of a pixel: to 10 it cut the rest off, as here, since 11 it rounds.
    ImageDraw.Draw(layer).text((int(64 * x) / 64, int(64 * y) / 64), text, font=face, fill=255)
    layer = layer.rotate(frame.degrees, expand=True, center=frame.center)
    page = Image.new("L", (size[1], size[0]))
    page.paste(layer, (int((page.width - layer.width) / 2), int((page.height - layer.height) / 2)))
    return page


def _draw_column(text: str, frame: _Frame, face: _Face, size: tuple[int, int]) -> Image.Image:
    """Coverage 0..255 on a page of `size` (H, W): the characters one below the other, spread by equal gaps.

    As in the reference, the column begins at the rectangle's upper edge with the space above the ink, so that it is
    too low by that space, and it is centred by the height of the text in one row.
    """
    _, top, _, bottom = face.getbbox(text)
    x = frame.left + frame.width // 2 - (bottom - top) // 2
    boxes = [face.getbbox(char) for char in text]
    heights = [box[3] - box[1] for box in boxes]
    room = frame.long - sum(heights)
    gap = room // (len(text) - 1) if room > 0 and len(text) > 1 else 0.0
    page, y = Image.new("L", (size[1], size[0])), float(frame.top)
    draw = ImageDraw.Draw(page)
    for char, height in zip(text, heights, strict=True):
        draw.text((x, y), char, font=face, fill=255)
        y += height + gap
    return page


def _ink_bitmap(page: np.ndarray) -> Bitmap:
    """The part of a page bool [H, W] that has ink."""
    bits = page.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(bits)
    return Bitmap(bits[top : top + height, left : left + width].copy(), left, top) if width else EMPTY_BITMAP


@lru_cache(maxsize=2048)
def _face(path: Path, size: int) -> _Face:
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.RAQM)
