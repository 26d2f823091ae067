"""Places for lines of text: from a mask picture, from boxes and from polygons.

A mask is read as the official program reads it: one place for each shape, in the same order, with the same polygon.
Unlike there, the shapes may have any colour on any plain background.

Shape legend: H/W pixels of the picture, P corners. A size is (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from anytext2.data.geometry import uncrossed
from anytext2.glyphs import reference_render, render
from anytext2.glyphs.fonts import Font
from anytext2.glyphs.rasters import default_page_font

Order = Literal["top-down", "left-right"]
ORDERS: tuple[Order, ...] = ("top-down", "left-right")

_LEAST_AREA = 20  # pixels of a shape; smaller ones are specks
_MOST_SHAPES = 100  # a mask with more is a photograph, not a mask
_BAND = 102  # height or width in pixels of the bands in which shapes are sorted, at 512 pixels and more
_CORNER_TOLERANCE = 0.01  # of a shape's perimeter, by which its polygon may differ from its contour
_LEAST_CONTRAST = 32  # of 255, between the background of a mask and its shapes
_LEAST_SOLIDITY = 0.7  # share of its convex hull that a place has; below that it is bent, such as an arch
_MOST_DISTORTION = 1.5  # by which the sides of mask and picture may differ in ratio


@dataclass(frozen=True)
class Place:
    """Where a line of text stands.

    polygon: float32 [P, 2], x and y in pixels of the picture. area: uint8 [H, W] in {0, 1}, the pixels of a shape that
    its simplified polygon does not have exactly; None: those of the polygon.
    """

    polygon: np.ndarray
    area: np.ndarray | None = None

    def position_mask(self, size: tuple[int, int]) -> np.ndarray:
        """The pixels of the place, as the official program tells the model: uint8 [H, W] in {0, 1}."""
        if self.area is not None and self.area.shape == (size[1], size[0]):
            return self.area
        return render.fill_polygons([self.polygon], (size[1], size[0]))


def places_from_mask(mask: np.ndarray | Image.Image, size: tuple[int, int], order: Order = "top-down") -> list[Place]:
    """One place for each shape of a mask, sorted in bands from top to bottom or from left to right.

    mask: a picture, or an array [H, W] or [H, W, C] of 0 to 255 or of 0 to 1. What differs from the background, which
    is the usual colour at its edge, is a shape; of a mask with transparency, what is not transparent.
    size: (width, height) of the picture that the places are for; the mask is scaled to it.
    Raises ValueError for a mask without shapes, or one that is no mask.
    """
    if order not in ORDERS:
        raise ValueError(f"order: {order!r} is not known; use {' or '.join(ORDERS)}")
    pixels = _mask_pixels(mask)
    height, width = pixels.shape[:2]
    distortion = width / height * size[1] / size[0]
    if max(distortion, 1 / distortion) > _MOST_DISTORTION:
        raise ValueError(
            f"mask: {width} x {height} pixels do not fit a picture of {size[0]} x {size[1]}; make a mask of that size"
        )
    shapes = np.where(_is_shape(pixels), 255, 0).astype(np.uint8)
    if (width, height) != size:
        shapes = np.where(cv2.resize(shapes, size, interpolation=cv2.INTER_AREA) > 127, 255, 0).astype(np.uint8)
    return [_shape_place(shape) for shape in _sorted_shapes(shapes, order)]


def place_from_box(box: Sequence[float], size: tuple[int, int]) -> Place:
    """The place of a box (left, top, right, bottom). Raises ValueError, naming what is outside the picture."""
    values = _floats(box)
    if values is None or len(values) != 4:
        raise ValueError(f"box {box!r}: four numbers are needed, left, top, right, bottom in pixels")
    left, top, right, bottom = values
    if not (right > left and bottom > top):
        raise ValueError(f"box {_join(values)}: right and bottom must be greater than left and top")
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)
    _require_inside(f"box {_join(values)}", corners, size)
    return Place(corners)


def place_from_polygon(points: Sequence[Sequence[float]] | np.ndarray, size: tuple[int, int]) -> Place:
    """The place of a polygon [P, 2]. If its edges cross, its convex hull. Raises ValueError as `place_from_box`."""
    try:
        polygon = np.array(points, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"polygon {points!r}: three or more corners x,y are needed") from error
    name = "polygon " + " ".join(_join(point) for point in polygon.reshape(-1, 2)) if polygon.ndim == 2 else "polygon"
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
        raise ValueError(f"{name}: three or more corners x,y are needed")
    _require_inside(name, polygon, size)
    polygon = uncrossed(polygon)
    if cv2.contourArea(polygon) < 1:
        raise ValueError(f"{name}: has no area; its corners lie on one line")
    return Place(polygon)


def parse_box(text: str) -> tuple[float, float, float, float]:
    """The box of `left,top,right,bottom`, as in 40,60,400,140. Raises ValueError."""
    numbers = _numbers(text)
    if numbers is None or len(numbers) != 4:
        raise ValueError(f"box {text!r}: write left,top,right,bottom in pixels, as in 40,60,400,140")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def parse_polygon(text: str) -> np.ndarray:
    """The corners float32 [P, 2] of `x,y x,y x,y`. Raises ValueError."""
    corners = [_numbers(corner) for corner in text.split()]
    if len(corners) < 3 or any(corner is None or len(corner) != 2 for corner in corners):
        raise ValueError(f"polygon {text!r}: write three or more corners in pixels, as in 40,60 400,80 390,150 30,130")
    return np.array(corners, np.float32)


def match_places(places: Sequence[Place], n_texts: int) -> tuple[list[Place], list[str]]:
    """The places of `n_texts` lines, and notes on those that are left over or bent.

    Raises ValueError if there are too few.
    """
    if len(places) < n_texts:
        raise ValueError(
            f"places: {len(places)} for {n_texts} texts; add {n_texts - len(places)}, or leave out texts in quotes"
        )
    left_over = len(places) - n_texts
    notes = [f"{left_over} of {len(places)} places are not used, there are {n_texts} texts"] if left_over else []
    for number, place in enumerate(places[:n_texts], start=1):
        if cv2.contourArea(place.polygon) < _LEAST_SOLIDITY * cv2.contourArea(cv2.convexHull(place.polygon)):
            notes.append(f"place {number} is bent: its text is drawn in a straight line across it, as in AnyText2")
    return list(places[:n_texts]), notes


def moved_to_fit(
    place: Place, text: str, size: tuple[int, int], font: Font | None = None, like_reference: bool = False
) -> Place:
    """The place shrunk around the text as it is drawn there, as `revise` of the official program does.

    font: of the glyph page; by default the first that has the text. like_reference: draw as the official program, and
    take its places for texts near the edge of the picture, which reach that edge. A text that is drawn in several
    parts, because its letters are far from each other, keeps its place.
    """
    width, height = size
    page = np.zeros((height, width), np.uint8)
    font = font or default_page_font(text)
    if like_reference:
        bitmap = reference_render.glyph_page_bitmap(text, place.polygon, (height, width), font, None)
    else:
        bitmap = render.glyph_page_bitmap(font.supported(text), place.polygon, font)
    bitmap.paste_onto(page)
    near = (max(1, height // 10), max(1, width // 10))  # letters within this distance are of one part
    # OpenCV closes the gap between a letter and the edge of the page, too; not if the edge is far away.
    y, x = (0, 0) if like_reference else near
    closed = cv2.morphologyEx(np.pad(page, ((y, y), (x, x))), cv2.MORPH_CLOSE, np.ones(near, np.uint8))
    closed = np.ascontiguousarray(closed[y : y + height, x : x + width])
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if len(contours) != 1:
        return place
    corners = cv2.boxPoints(cv2.minAreaRect(contours[0])).astype(np.int32)
    if cv2.contourArea(corners) < 1:
        return place
    return Place(corners.astype(np.float32), cv2.drawContours(closed, [corners], -1, 1, -1))


def _mask_pixels(mask: np.ndarray | Image.Image) -> np.ndarray:
    """float32 [H, W, C] in 0..255; the alpha channel alone if it is not the same everywhere."""
    if isinstance(mask, Image.Image):
        if mask.has_transparency_data:
            mask = mask.convert("RGBA")
        elif mask.mode not in ("1", "L", "I", "F", "I;16"):
            mask = mask.convert("RGB")
    values: np.ndarray = np.asarray(mask)
    if values.ndim not in (2, 3) or not values.size or values.dtype.kind not in "buif":
        raise ValueError(f"mask: expected a picture, got {values.dtype} {list(values.shape)}")
    pixels = np.atleast_3d(values).astype(np.float32)
    most = float(pixels.max())
    pixels *= 255 / most if most > 255 else (255 if values.dtype.kind == "b" or most <= 1 else 1)
    if pixels.shape[2] in (2, 4):
        alpha, pixels = pixels[..., -1:], pixels[..., :-1]
        if np.ptp(alpha) >= _LEAST_CONTRAST:
            return alpha
    return pixels


def _is_shape(pixels: np.ndarray) -> np.ndarray:
    """bool [H, W]: where the mask differs from its background by more than half of the greatest difference."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    difference = np.abs(pixels - np.median(edge, axis=0)).max(axis=2)
    most = float(difference.max())
    if most < _LEAST_CONTRAST:
        raise ValueError("mask: empty; draw one shape for each text, white on black or black on white")
    is_shape: np.ndarray = difference > most / 2
    return is_shape


def _sorted_shapes(shapes: np.ndarray, order: Order) -> list[np.ndarray]:
    """The connected shapes of uint8 [H, W] in {0, 255}, each on a page of its own, in order."""
    _, labels, stats, centroids = cv2.connectedComponentsWithStats(shapes)
    found = [label for label in range(1, len(stats)) if stats[label, cv2.CC_STAT_AREA] >= _LEAST_AREA]
    if not found:
        raise ValueError(
            f"mask: no shape of {_LEAST_AREA} pixels or more; draw one for each text, as large as the text"
        )
    if len(found) > _MOST_SHAPES:
        raise ValueError(f"mask: {len(found)} shapes; a mask has one plain shape for each text, on a plain background")
    first, second = (1, 0) if order == "top-down" else (0, 1)
    band = _BAND * min(1.0, max(shapes.shape) / render.REFERENCE_RESOLUTION)
    found.sort(key=lambda label: (centroids[label][first] // band, centroids[label][second] // band))
    return [np.where(labels == label, 255, 0).astype(np.uint8) for label in found]


def _shape_place(shape: np.ndarray) -> Place:
    """The place of a shape, uint8 [H, W] in {0, 255}: its simplified contour, and its pixels with the contour's."""
    contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    polygon = cv2.approxPolyDP(contour, _CORNER_TOLERANCE * cv2.arcLength(contour, True), True)[:, 0]
    if len(polygon) < 3:
        x, y = contour[:, 0].mean(axis=0).round().astype(int).tolist()
        raise ValueError(f"mask: the shape at {x},{y} is only a thin line; draw it as high as the letters")
    return Place(polygon.astype(np.float32), cv2.drawContours(shape, [polygon], -1, 255, -1) // 255)


def _require_inside(name: str, corners: np.ndarray, size: tuple[int, int]) -> None:
    if not np.isfinite(corners).all():
        raise ValueError(f"{name}: coordinates must be finite numbers")
    for axis, letter in enumerate("xy"):
        low, high = float(corners[:, axis].min()), float(corners[:, axis].max())
        if low < 0 or high > size[axis]:
            value = low if low < 0 else high
            raise ValueError(
                f"{name}: {letter} = {value:g} is outside of the picture of {size[0]} x {size[1]} pixels; "
                f"use 0 to {size[axis]}"
            )


def _numbers(text: str) -> list[float] | None:
    return _floats(text.split(","))


def _floats(values: Any) -> list[float] | None:
    """The values as numbers; None where one is none, or not finite."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _join(values: Any) -> str:
    return ",".join(f"{float(value):g}" for value in values)
