"""Pure drawing: glyph line, glyph page, position mask, font hint. All maps are uint8 in {0, 1}.

What is drawn for one line is `Ink`: a small map and its place, so that nothing costs more than the line's box.

What is drawn follows AnyText2 (arXiv:2411.15245) and its dataset code's conventions; sizes come in closed form from
one measurement instead of a search, and everything happens inside the line's box.

Shape legend: H/W pixels of the page, P corners of a polygon.
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
"""The picture size for which AnyText2's pixel constants (small lines, shifts) are meant; others scale them."""

_FILL = 0.9  # share of the glyph line's height and width that a text may take
UPRIGHT_DEGREES = 10.0  # a box turned by less than this counts as upright
_ALIGNED_DEGREES = 0.5  # a text turned by less than this is drawn without resampling


@dataclass(frozen=True)
class Bitmap:
    """A map uint8 [h, w] in {0, 1} whose first pixel stands at (left, top) of a page."""

    bits: np.ndarray
    left: int
    top: int

    def onto(self, page: np.ndarray) -> None:
        """Unites the ink with `page` [H, W]; what lies outside is cut off."""
        _paste(page, self.bits, self.left, self.top)


EMPTY_BITMAP = Bitmap(np.zeros((0, 0), np.uint8), 0, 0)


def glyph_line(text: str, font: Font) -> np.ndarray:
    """One line of text as large as fits, centred: uint8 [80, 512], 1 = ink. Blank text gives zeros."""
    page = np.zeros(GLYPH_LINE_SIZE, np.uint8)
    glyph_line_bitmap(text, font).onto(page)
    return page


def glyph_line_bitmap(text: str, font: Font) -> Bitmap:
    """The ink of `glyph_line` alone."""
    if not text.strip():
        return EMPTY_BITMAP
    height, width = GLYPH_LINE_SIZE
    size = font.size_that_fits(text, _FILL * width, _FILL * height)
    bits = np.asarray(draw_text(text, font, size, mode="1")).astype(np.uint8)
    return Bitmap(bits, left=(width - bits.shape[1]) // 2, top=(height - bits.shape[0]) // 2)


def glyph_page(
    text: str, polygon: np.ndarray, size: tuple[int, int], font: Font, ink_threshold: float = 0.1
) -> np.ndarray:
    """The text drawn into its polygon: uint8 [H, W] for size = (H, W), 1 = ink; see `page_ink`."""
    page = np.zeros(size, np.uint8)
    glyph_page_bitmap(text, polygon, font, ink_threshold).onto(page)
    return page


def glyph_page_bitmap(text: str, polygon: np.ndarray, font: Font, ink_threshold: float = 0.1) -> Bitmap:
    """The text drawn into its polygon [P, 2] (pixels of the page).

    The text fills the polygon's minimum-area rectangle: as large as fits, then spaced out along it. An upright box that
    is higher than wide is written from top to bottom when the characters come out larger that way. ink_threshold:
    least coverage (0..1) of a pixel that counts as ink.
    """
    text = text.strip()
    if not text:
        return EMPTY_BITMAP
    frame = _frame(polygon)
    placed, left, top = _turned(_ink_in_frame(text, frame, font), frame)
    return Bitmap((placed > 255 * ink_threshold).astype(np.uint8), left, top)


def position_mask(polygon: np.ndarray, size: tuple[int, int], rng: RandomSource | None = None) -> np.ndarray:
    """The filled polygon: uint8 [H, W] for size = (H, W).

    With `rng` its edge is blurred as in training: 70 % exact, 10 % grown by one pixel, 10 % shrunk by one, 5 % grown
    by two, 5 % shrunk by two; lines thinner than 20 pixels of 512 are never shrunk.
    """
    mask = np.zeros(size, np.uint8)
    # only where the line is: the edge moves by two pixels at most, and a margin of three keeps the window's out of it
    left, top, right, bottom = _bounds(polygon, size)
    x, y = max(0, left - 3), max(0, top - 3)
    window = mask[y : bottom + 3, x : right + 3]
    if right <= left or bottom <= top:
        return mask
    shape = fill_polygons([np.round(polygon) - (x, y)], window.shape)  # rounded on the page, as without a window
    window[:] = shape if rng is None else _moved_edge(shape, rng.random(), small=_is_small(polygon, size))
    return mask


def fill_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Union of polygons [P, 2], edges included, what lies outside the page cut off: uint8 [H, W]."""
    mask = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask


def font_hint(
    image: np.ndarray,
    polygon: np.ndarray,
    area: tuple[float, float] = (1.0, 1.0),
    augment: bool = False,
    rng: RandomSource | None = None,
) -> np.ndarray:
    """The strokes of a line as a binary picture: uint8 [H, W], 1 where darker than the neighbourhood.

    image: uint8 [H, W, 3] red-green-blue. The arguments that follow are those of `stroke_ink` and `hint_ink`.
    """
    size = (image.shape[0], image.shape[1])
    hint = np.zeros(size, np.uint8)
    assert rng is not None or not augment, "augmentation draws random numbers"
    change = random_hint_transform(rng, size) if augment and rng is not None else None
    font_hint_bitmap(stroke_bitmap(image, polygon, change), polygon, area, rng).onto(hint)
    return hint


@dataclass(frozen=True)
class HintTransform:
    """How a font hint's crop is turned about its centre (degrees), scaled and then shifted (pixels)."""

    degrees: float
    scale: float
    shift: tuple[float, float]

    def apply(self, crop: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """The changed crop, of the same size and dtype; edge pixels are repeated outwards."""
        height, width = crop.shape[:2]
        matrix = np.array(cv2.getRotationMatrix2D((width / 2, height / 2), self.degrees, self.scale), np.float64)
        matrix[:, 2] += self.shift
        return cv2.warpAffine(crop, matrix, (width, height), flags=interpolation, borderMode=cv2.BORDER_REPLICATE)


def random_hint_transform(rng: RandomSource, size: tuple[int, int]) -> HintTransform:
    """Up to 10 degrees, 10 % and 10 pixels of 512, for a page of size (H, W)."""
    most = 10 * size[1] / REFERENCE_RESOLUTION
    degrees, scale = uniform(rng, -10, 10), uniform(rng, 0.9, 1.1)
    return HintTransform(degrees, scale, (uniform(rng, -most, most), uniform(rng, -most, most)))


def stroke_bitmap(image: np.ndarray, polygon: np.ndarray, change: HintTransform | None = None) -> Bitmap:
    """Everything darker than its neighbourhood in the polygon's bounding rectangle of `image` uint8 [H, W, 3]."""
    left, top, right, bottom = _bounds(polygon, image.shape[:2])
    if right <= left or bottom <= top:
        return EMPTY_BITMAP
    crop = image[top:bottom, left:right]
    gray = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    if change is not None:
        gray = change.apply(gray)
    strokes = cv2.adaptiveThreshold(gray, 1, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY_INV, 11, 2)
    return Bitmap(strokes, left, top)


def font_hint_bitmap(
    strokes: Bitmap, polygon: np.ndarray, area: tuple[float, float] = (1.0, 1.0), rng: RandomSource | None = None
) -> Bitmap:
    """The strokes inside the polygon; the share of the line's length that is kept is uniform in `area`.

    The rest is one gap at a random place, for which `rng` is needed.
    """
    if not strokes.bits.size:
        return EMPTY_BITMAP
    origin = (strokes.left, strokes.top)
    kept = fill_polygons([np.round(polygon) - origin], strokes.bits.shape)
    if area[0] < 1:
        assert rng is not None, "the gap is at a random place"
        gap = _gap(polygon, 1 - uniform(rng, *area), rng.random())
        cv2.fillPoly(kept, [np.round(gap - origin).astype(np.int32)], 0)
    return Bitmap(strokes.bits * kept, strokes.left, strokes.top)


@dataclass(frozen=True)
class _Frame:
    """Where a text is written: a rectangle with a reading direction. angle: degrees, clockwise as y grows downwards."""

    center: tuple[float, float]
    width: float
    height: float
    angle: float


def _frame(polygon: np.ndarray) -> _Frame:
    """The polygon's minimum-area rectangle, read along its long side; an upright one along its level side."""
    corners = cv2.boxPoints(cv2.minAreaRect(np.float32(polygon)))
    edges = corners[1] - corners[0], corners[2] - corners[1]
    angles = [_level_angle(edge) for edge in edges]
    lengths = [float(np.hypot(*edge)) for edge in edges]
    if min(abs(angle) for angle in angles) < UPRIGHT_DEGREES:
        reading = int(abs(angles[1]) < abs(angles[0]))
    else:
        reading = int(lengths[1] > lengths[0])
    x, y = corners.mean(0)
    return _Frame((float(x), float(y)), lengths[reading], lengths[1 - reading], angles[reading])


def _level_angle(edge: np.ndarray) -> float:
    """Angle of an undirected edge in [-90, 90) degrees."""
    return (math.degrees(math.atan2(edge[1], edge[0])) + 90) % 180 - 90


def _ink_in_frame(text: str, frame: _Frame, font: Font) -> np.ndarray:
    """Coverage 0..255 of the text, fitted to the frame and spaced out along it, cut tightly: uint8 [h, w]."""
    size = font.size_that_fits(text, frame.width, frame.height)
    if frame.height > frame.width and abs(frame.angle) < UPRIGHT_DEGREES and len(text) > 1:
        column = _column_size(text, frame, font)
        if column > size:
            return _column(text, frame, font, column)
    room = frame.width - font.ink_box(text).scaled(size / REFERENCE_SIZE).width
    spacing = max(0.0, room / (len(text) - 1)) if len(text) > 1 else 0.0
    ink = np.asarray(draw_text(text, font, size, spacing=spacing if spacing >= 1 else 0.0))
    return _no_larger(ink, frame)


def _column_size(text: str, frame: _Frame, font: Font) -> int:
    """Largest size at which the characters, one below the other, fit into the frame."""
    boxes = [font.ink_box(char) for char in text]
    widest, stacked = max(box.width for box in boxes), sum(box.height for box in boxes)
    # Some characters have neither width nor ink.
    ratio = min(frame.width / max(widest, 1.0), frame.height / max(stacked, 1.0), MAX_FONT_SIZE / REFERENCE_SIZE)
    return max(1, math.floor(REFERENCE_SIZE * ratio))


def _column(text: str, frame: _Frame, font: Font, size: int) -> np.ndarray:
    """Coverage of the text written from top to bottom, spaced out over the frame's height."""
    inks = [np.asarray(draw_text(char, font, size)) for char in text]
    room = frame.height - sum(ink.shape[0] for ink in inks)
    gap = max(0.0, room / (len(inks) - 1))
    width = max(ink.shape[1] for ink in inks)
    height = sum(ink.shape[0] for ink in inks) + math.ceil(gap * (len(inks) - 1))
    column, top = np.zeros((height, width), np.uint8), 0.0
    for ink in inks:
        _paste(column, ink, (width - ink.shape[1]) // 2, round(top))
        top += ink.shape[0] + gap
    return _no_larger(column, frame)


def _no_larger(ink: np.ndarray, frame: _Frame) -> np.ndarray:
    """Hinting and rounding may add a pixel or two to the computed size; shrinks the ink where they did."""
    height, width = ink.shape
    most_h, most_w = max(1, math.floor(frame.height)), max(1, math.floor(frame.width))
    if height <= most_h and width <= most_w:
        return ink
    return cv2.resize(ink, (min(width, most_w), min(height, most_h)), interpolation=cv2.INTER_AREA)


def _turned(ink: np.ndarray, frame: _Frame) -> tuple[np.ndarray, int, int]:
    """The ink turned to the frame's angle about the frame's centre, and the page position of its first pixel."""
    height, width = ink.shape
    x, y = frame.center
    if abs(frame.angle) < _ALIGNED_DEGREES:
        # A pixel's index is its centre: a polygon from 10 to 19 covers pixels 10..19, its centre is 14.5.
        return ink, round(x - (width - 1) / 2), round(y - (height - 1) / 2)
    cos, sin = math.cos(math.radians(frame.angle)), math.sin(math.radians(frame.angle))
    half_w = (abs(cos) * width + abs(sin) * height) / 2
    half_h = (abs(sin) * width + abs(cos) * height) / 2
    left, top = math.floor(x - half_w), math.floor(y - half_h)
    turn = np.array([[cos, -sin], [sin, cos]])
    shift = np.array([x - left, y - top]) - turn @ np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.concatenate([turn, shift[:, None]], axis=1)
    window = (math.ceil(2 * half_w) + 2, math.ceil(2 * half_h) + 2)
    return cv2.warpAffine(ink, matrix, window, flags=cv2.INTER_LINEAR), left, top


def _paste(page: np.ndarray, ink: np.ndarray, left: int, top: int) -> None:
    """Unites ink with the page at (left, top); what lies outside is cut off."""
    height, width = page.shape
    y0, y1 = max(0, top), min(height, top + ink.shape[0])
    x0, x1 = max(0, left), min(width, left + ink.shape[1])
    if y0 < y1 and x0 < x1:
        page[y0:y1, x0:x1] |= ink[y0 - top : y1 - top, x0 - left : x1 - left]


def _moved_edge(mask: np.ndarray, draw: float, small: bool) -> np.ndarray:
    """The mask with its edge moved as `draw`, uniform in [0, 1), says; see position_mask."""
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
    """left, top, right, bottom (exclusive) of the polygon's pixels on the page."""
    corners = np.round(polygon).astype(int)
    left, top = np.maximum(corners.min(0), 0).tolist()
    right, bottom = np.minimum(corners.max(0) + 1, (size[1], size[0])).tolist()
    return left, top, right, bottom


def _gap(polygon: np.ndarray, share: float, place: float) -> np.ndarray:
    """A rectangle across the line that covers `share` of its length; place 0 puts it at one end, 1 at the other."""
    a, b, c, d = cv2.boxPoints(cv2.minAreaRect(np.float32(polygon))).tolist()
    if math.dist(a, b) < math.dist(b, c):
        a, b, d = b, c, a
    begin, end = (1 - share) * place, (1 - share) * place + share
    # A little wider than the line, so that rounding leaves no rim.
    shares = ((begin, -0.1), (end, -0.1), (end, 1.1), (begin, 1.1))
    return np.array([[a[k] + u * (b[k] - a[k]) + v * (d[k] - a[k]) for k in (0, 1)] for u, v in shares])
