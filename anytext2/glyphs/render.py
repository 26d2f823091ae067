"""Draws glyph lines, glyph pages, position masks and font hints. All maps are uint8 in {0, 1}.

One line is drawn as a `Bitmap`, a small map with its position on the page, so that the cost depends on the size of the
line only. The maps follow AnyText2 (arXiv:2411.15245) and the conventions of its dataset code. Unlike there, the font
size is computed from one measurement instead of a search.

Shape legend: H/W pixels of the page, h/w pixels of a bitmap, P corners of a polygon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from anytext2.core.batch import GLYPH_LINE_SIZE
from anytext2.core.rng import RandomSource, uniform
from anytext2.glyphs.fonts import MAX_FONT_SIZE, REFERENCE_SIZE, Font, draw_text

REFERENCE_RESOLUTION = 512
"""Picture size in pixels of AnyText2's pixel constants (small lines, shifts). They are scaled for other sizes."""

UPRIGHT_DEGREES = 10.0
"""A box that is rotated by less than this counts as upright."""

_FILL = 0.9  # share of the glyph line's height and width that a text may take
_ALIGNED_DEGREES = 0.5  # a text that is rotated by less than this is drawn without resampling


@dataclass(frozen=True)
class Bitmap:
    """A map `bits`: uint8 [h, w] in {0, 1}, whose first pixel is at (left, top) of a page."""

    bits: np.ndarray
    left: int
    top: int

    def paste_onto(self, page: np.ndarray) -> None:
        """Sets `page` [H, W] to its union with the bitmap. Parts outside the page are cut off."""
        _paste(page, self.bits, self.left, self.top)


EMPTY_BITMAP = Bitmap(np.zeros((0, 0), np.uint8), 0, 0)


def glyph_line(text: str, font: Font) -> np.ndarray:
    """The text on a canvas of its own, centred and as large as fits: uint8 [80, 512]. Blank text gives zeros."""
    page = np.zeros(GLYPH_LINE_SIZE, np.uint8)
    glyph_line_bitmap(text, font).paste_onto(page)
    return page


def glyph_line_bitmap(text: str, font: Font) -> Bitmap:
    """`glyph_line` as a bitmap."""
    if not text.strip():
        return EMPTY_BITMAP
    height, width = GLYPH_LINE_SIZE
    size = font.size_that_fits(text, _FILL * width, _FILL * height)
    bits = np.asarray(draw_text(text, font, size, mode="1")).astype(np.uint8)
    return Bitmap(bits, left=(width - bits.shape[1]) // 2, top=(height - bits.shape[0]) // 2)


def glyph_page_bitmap(text: str, polygon: np.ndarray, font: Font, ink_threshold: float = 0.1) -> Bitmap:
    """The text drawn into its polygon [P, 2] (pixels of the page).

    The text is as large as fits into the polygon's minimum-area rectangle, then spaced out along it. In an upright
    rectangle that is taller than wide, it is written from top to bottom if the characters are larger that way.
    ink_threshold: least coverage (0..1) at which a pixel is 1.
    """
    text = text.strip()
    if not text:
        return EMPTY_BITMAP
    frame = _text_frame(polygon)
    coverage, left, top = _rotate_to_frame(_draw_in_frame(text, frame, font), frame)
    return Bitmap((coverage > 255 * ink_threshold).astype(np.uint8), left, top)


def glyph_page_font_size(text: str, polygon: np.ndarray, font: Font) -> int:
    """The font size in pixels per em at which `glyph_page_bitmap` draws the text."""
    return _fitted_size(text.strip(), _text_frame(polygon), font)[0]


def position_mask(polygon: np.ndarray, size: tuple[int, int], rng: RandomSource | None = None) -> np.ndarray:
    """The filled polygon: uint8 [H, W] for size = (H, W).

    With `rng` the mask is augmented as in training: 70 % unchanged, 10 % dilated by one pixel, 10 % eroded by one, 5 %
    dilated by two, 5 % eroded by two. Lines thinner than 20 pixels of 512 are not eroded.
    """
    mask = np.zeros(size, np.uint8)
    # Only a window around the line is drawn: the edge moves by at most two pixels, the margin is three.
    left, top, right, bottom = _bounds(polygon, size)
    x, y = max(0, left - 3), max(0, top - 3)
    window = mask[y : bottom + 3, x : right + 3]
    if right <= left or bottom <= top:
        return mask
    shape = fill_polygons([np.round(polygon) - (x, y)], window.shape)  # rounded in page coordinates
    window[:] = shape if rng is None else _dilate_or_erode(shape, rng.random(), small=_is_small(polygon, size))
    return mask


def fill_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Union of filled polygons [P, 2], edges included: uint8 [H, W]. Parts outside the page are cut off."""
    mask = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask


@dataclass(frozen=True)
class HintTransform:
    """A rotation (degrees) and scaling about the centre of a font hint's crop, then a shift (x, y in pixels)."""

    degrees: float
    scale: float
    shift: tuple[float, float]

    def apply(self, crop: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """The transformed crop [h, w], of the same size and dtype; edge pixels are replicated outwards."""
        height, width = crop.shape[:2]
        matrix = np.array(cv2.getRotationMatrix2D((width / 2, height / 2), self.degrees, self.scale), np.float64)
        matrix[:, 2] += self.shift
        return cv2.warpAffine(crop, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_REPLICATE)


def random_hint_transform(rng: RandomSource, size: tuple[int, int]) -> HintTransform:
    """A transform of up to 10 degrees, 10 % and 10 pixels of 512, for a page of size (H, W)."""
    max_shift = 10 * size[1] / REFERENCE_RESOLUTION
    degrees, scale = uniform(rng, -10, 10), uniform(rng, 0.9, 1.1)
    return HintTransform(degrees, scale, (uniform(rng, -max_shift, max_shift), uniform(rng, -max_shift, max_shift)))


def stroke_bitmap(image: np.ndarray, polygon: np.ndarray, transform: HintTransform | None = None) -> Bitmap:
    """The strokes in the polygon's bounding rectangle: pixels that are darker than their neighbourhood.

    image: uint8 [H, W, 3], red-green-blue. transform: applied to the rectangle's gray values.
    """
    left, top, right, bottom = _bounds(polygon, image.shape[:2])
    if right <= left or bottom <= top:
        return EMPTY_BITMAP
    crop = image[top:bottom, left:right]
    gray = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    if transform is not None:
        gray = transform.apply(gray)
    strokes = cv2.adaptiveThreshold(gray, 1, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV, 11, 2)
    return Bitmap(strokes, left, top)


def font_hint_bitmap(
    strokes: Bitmap, polygon: np.ndarray, area: tuple[float, float] = (1.0, 1.0), rng: RandomSource | None = None
) -> Bitmap:
    """The strokes inside the polygon [P, 2], with one random gap if area[0] < 1, for which `rng` is needed.

    area: range of the share of the line's length outside the gap, which is drawn uniformly.
    """
    if not strokes.bits.size:
        return EMPTY_BITMAP
    origin = (strokes.left, strokes.top)
    kept = fill_polygons([np.round(polygon) - origin], strokes.bits.shape)
    if area[0] < 1:
        assert rng is not None, "the gap is at a random position"
        gap = _gap(polygon, 1 - uniform(rng, *area), rng.random())
        cv2.fillPoly(kept, [np.round(gap - origin).astype(np.int32)], 0)
    return Bitmap(strokes.bits * kept, strokes.left, strokes.top)


@dataclass(frozen=True)
class _Frame:
    """A rectangle with a reading direction. angle: degrees, clockwise, because y grows downwards."""

    center: tuple[float, float]
    width: float
    height: float
    angle: float


def _text_frame(polygon: np.ndarray) -> _Frame:
    """The polygon's minimum-area rectangle, read along its longer side; if upright, along its horizontal side."""
    corners = cv2.boxPoints(cv2.minAreaRect(np.float32(polygon)))
    edges = corners[1] - corners[0], corners[2] - corners[1]
    angles = [_edge_angle(edge) for edge in edges]
    lengths = [float(np.hypot(*edge)) for edge in edges]
    if min(abs(angle) for angle in angles) < UPRIGHT_DEGREES:
        reading = int(abs(angles[1]) < abs(angles[0]))
    else:
        reading = int(lengths[1] > lengths[0])
    x, y = corners.mean(0)
    return _Frame((float(x), float(y)), lengths[reading], lengths[1 - reading], angles[reading])


def _edge_angle(edge: np.ndarray) -> float:
    """Angle of an undirected edge in [-90, 90) degrees."""
    return (math.degrees(math.atan2(edge[1], edge[0])) + 90) % 180 - 90


def _draw_in_frame(text: str, frame: _Frame, font: Font) -> np.ndarray:
    """Coverage 0..255 of the text, fitted to the frame and spaced out along it: uint8 [h, w], its bounding box."""
    size, is_column = _fitted_size(text, frame, font)
    if is_column:
        return _draw_column(text, frame, font, size)
    room = frame.width - font.ink_box(text).scaled(size / REFERENCE_SIZE).width
    spacing = max(0.0, room / (len(text) - 1)) if len(text) > 1 else 0.0
    ink = np.asarray(draw_text(text, font, size, spacing=spacing if spacing >= 1 else 0.0))
    return _shrink_to_frame(ink, frame)


def _fitted_size(text: str, frame: _Frame, font: Font) -> tuple[int, bool]:
    """The font size in pixels per em at which the text fits the frame, and whether it is written top to bottom."""
    size = font.size_that_fits(text, frame.width, frame.height)
    if frame.height > frame.width and abs(frame.angle) < UPRIGHT_DEGREES and len(text) > 1:
        column_size = _column_font_size(text, frame, font)
        if column_size > size:
            return column_size, True
    return size, False


def _column_font_size(text: str, frame: _Frame, font: Font) -> int:
    """Largest font size at which the characters, one below the other, fit into the frame."""
    boxes = [font.ink_box(char) for char in text]
    widest, stacked = max(box.width for box in boxes), sum(box.height for box in boxes)
    # Some characters have neither width nor ink.
    ratio = min(frame.width / max(widest, 1.0), frame.height / max(stacked, 1.0), MAX_FONT_SIZE / REFERENCE_SIZE)
    return max(1, math.floor(REFERENCE_SIZE * ratio))


def _draw_column(text: str, frame: _Frame, font: Font, size: int) -> np.ndarray:
    """Coverage of the text written from top to bottom, spaced out over the frame's height: uint8 [h, w]."""
    inks = [np.asarray(draw_text(char, font, size)) for char in text]
    room = frame.height - sum(ink.shape[0] for ink in inks)
    gap = max(0.0, room / (len(inks) - 1))
    width = max(ink.shape[1] for ink in inks)
    height = sum(ink.shape[0] for ink in inks) + math.ceil(gap * (len(inks) - 1))
    column, top = np.zeros((height, width), np.uint8), 0.0
    for ink in inks:
        _paste(column, ink, (width - ink.shape[1]) // 2, round(top))
        top += ink.shape[0] + gap
    return _shrink_to_frame(column, frame)


def _shrink_to_frame(ink: np.ndarray, frame: _Frame) -> np.ndarray:
    """The ink resized to the frame's size if it is larger: hinting and rounding may add a pixel or two."""
    height, width = ink.shape
    max_height, max_width = max(1, math.floor(frame.height)), max(1, math.floor(frame.width))
    if height <= max_height and width <= max_width:
        return ink
    return cv2.resize(ink, (min(width, max_width), min(height, max_height)), interpolation=cv2.INTER_AREA)


def _rotate_to_frame(ink: np.ndarray, frame: _Frame) -> tuple[np.ndarray, int, int]:
    """The ink rotated to the frame's angle and centred on the frame; left and top of its first pixel on the page."""
    height, width = ink.shape
    x, y = frame.center
    if abs(frame.angle) < _ALIGNED_DEGREES:
        # Pixel centres are integers: a polygon from 10 to 19 covers pixels 10..19, its centre is 14.5.
        return ink, round(x - (width - 1) / 2), round(y - (height - 1) / 2)
    cos, sin = math.cos(math.radians(frame.angle)), math.sin(math.radians(frame.angle))
    half_w = (abs(cos) * width + abs(sin) * height) / 2
    half_h = (abs(sin) * width + abs(cos) * height) / 2
    left, top = math.floor(x - half_w), math.floor(y - half_h)
    rotation = np.array([[cos, -sin], [sin, cos]])
    shift = np.array([x - left, y - top]) - rotation @ np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.concatenate([rotation, shift[:, None]], axis=1)
    window = (math.ceil(2 * half_w) + 2, math.ceil(2 * half_h) + 2)
    return cv2.warpAffine(ink, matrix, window, flags=cv2.INTER_LINEAR), left, top


def _paste(page: np.ndarray, ink: np.ndarray, left: int, top: int) -> None:
    """Sets `page` [H, W] to its bitwise or with `ink` [h, w] at (left, top). Parts outside the page are cut off."""
    height, width = page.shape
    y0, y1 = max(0, top), min(height, top + ink.shape[0])
    x0, x1 = max(0, left), min(width, left + ink.shape[1])
    if y0 < y1 and x0 < x1:
        page[y0:y1, x0:x1] |= ink[y0 - top : y1 - top, x0 - left : x1 - left]


def _dilate_or_erode(mask: np.ndarray, draw: float, small: bool) -> np.ndarray:
    """The augmentation of `position_mask`. draw: uniform in [0, 1); small: do not erode."""
    kernel = np.ones((3, 3), np.uint8)
    if draw < 0.7:
        return mask
    if draw < 0.8:
        return cv2.dilate(mask, kernel, iterations=1)
    if draw < 0.9:
        return mask if small else cv2.erode(mask, kernel, iterations=1)
    if draw < 0.95:
        return cv2.dilate(mask, kernel, iterations=2)
    return mask if small else cv2.erode(mask, kernel, iterations=2)


def _is_small(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    sides = cv2.minAreaRect(np.float32(polygon))[1]
    return min(sides) < 20 * max(size) / REFERENCE_RESOLUTION


def _bounds(polygon: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (exclusive) of the polygon's pixels on a page of size (H, W)."""
    corners = np.round(polygon).astype(int)
    left, top = np.maximum(corners.min(0), 0).tolist()
    right, bottom = np.minimum(corners.max(0) + 1, (size[1], size[0])).tolist()
    return left, top, right, bottom


def _gap(polygon: np.ndarray, share: float, position: float) -> np.ndarray:
    """A rectangle [4, 2] across the line that covers `share` of its length. position: 0 at one end, 1 at the other."""
    a, b, c, d = cv2.boxPoints(cv2.minAreaRect(np.float32(polygon))).tolist()
    if math.dist(a, b) < math.dist(b, c):
        a, b, d = b, c, a
    begin, end = (1 - share) * position, (1 - share) * position + share
    # 20 % wider than the line, so that rounding leaves no rest at its edges.
    corners = ((begin, -0.1), (end, -0.1), (end, 1.1), (begin, 1.1))
    return np.array([[a[k] + u * (b[k] - a[k]) + v * (d[k] - a[k]) for k in (0, 1)] for u, v in corners])
