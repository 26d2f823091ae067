"""Scales the polygons of a record from the picture file's size to a sample's size.

Shape legend: H/W pixels, P corners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from anytext2.core.batch import Record, TextLine
from anytext2.glyphs import render

Size = tuple[int, int]
"""Height and width in pixels."""


def fit_record(record: Record, file_size: Size, size: Size) -> Record:
    """`scale_record` without the lines that lie outside the picture.

    A record without any line gets one blank line, as in AnyText2.
    """
    record = scale_record(record, file_size, size)
    lines = tuple(line for line in record.lines if not is_outside_image(line.polygon, size))
    return replace(record, lines=lines or (_blank_line(size),))


def scale_record(record: Record, file_size: Size, size: Size) -> Record:
    """The record with its polygons scaled from `file_size` to `size` (both H, W) and clipped by `clip_polygons`."""
    return clip_polygons(scale_polygons(record, size[1] / file_size[1], size[0] / file_size[0]), size)


def is_outside_image(polygon: np.ndarray, size: Size) -> bool:
    """Whether the polygon [P, 2] covers no pixel of a picture of `size` (H, W)."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    if low.min() >= 0 and high[0] < size[1] and high[1] < size[0]:
        return False  # the usual case, without drawing
    return not render.fill_polygons([polygon], size).any()


def scale_polygons(record: Record, x: float, y: float) -> Record:
    """The record with all polygons scaled by the factors `x` and `y`."""
    factor = np.array([x, y], np.float32)
    return _map_polygons(record, lambda polygon: polygon * factor)


def clip_polygons(record: Record, size: Size) -> Record:
    """The record with corners limited to -W..2W and -H..2H, for a picture of `size` (H, W).

    Text is fitted to its polygon, so that a corner far outside would make it many times larger than the picture.
    """
    limit = np.array([size[1], size[0]], np.float32)
    return _map_polygons(record, lambda polygon: np.clip(polygon, -limit, 2 * limit))


def uncrossed(polygon: np.ndarray) -> np.ndarray:
    """The polygon float32 [P, 2] itself; where its edges cross, as in a bow tie, its convex hull.

    Corners in a wrong order leave a region that is not the line's: a filled bow tie lacks half of it.
    """
    if (len(polygon) == 4 and cv2.isContourConvex(polygon)) or not _edges_cross(polygon):
        return polygon
    return cv2.convexHull(polygon)[:, 0]


def _edges_cross(polygon: np.ndarray) -> bool:
    """Whether two edges have a common point inside both."""
    polygon = polygon.astype(np.float64)
    edges = np.roll(polygon, -1, axis=0) - polygon
    to_corners = polygon[None] - polygon[:, None]
    # side[i, j]: positive where corner j is on one side of edge i, negative on the other
    side = edges[:, None, 0] * to_corners[..., 1] - edges[:, None, 1] * to_corners[..., 0]
    parts = side * np.roll(side, -1, axis=1) < 0  # edge j goes from one side of edge i's line to the other
    return bool((parts & parts.T).any())


def _map_polygons(record: Record, fn: Callable[[np.ndarray], np.ndarray]) -> Record:
    lines = tuple(TextLine(line.text, fn(line.polygon), line.language, line.color) for line in record.lines)
    return replace(record, lines=lines, ignored_polygons=tuple(map(fn, record.ignored_polygons)))


def _blank_line(size: Size) -> TextLine:
    """The line of a picture without text: a space in the top left corner."""
    corner = np.array([(10, 10), (100, 10), (100, 100), (10, 100)], np.float32)
    return TextLine(" ", corner * np.array([size[1], size[0]], np.float32) / render.REFERENCE_RESOLUTION, "Latin", None)
