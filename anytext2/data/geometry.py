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

SAME_BOX = 1.0
"""Two boxes are the same if each corner of one has a corner of the other so near, in pixels along both axes."""


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


def same_boxes(polygons: dict[int, np.ndarray]) -> list[list[int]]:
    """Numbers of the polygons [P, 2] that are the same box, ascending; only groups of two or more."""
    if len(polygons) < 2:
        return []
    groups: list[tuple[_Bounds, list[int]]] = []
    nearest = 0  # the first group whose left edge is near enough to the current one
    for bounds, number in sorted((_bounds(polygon), number) for number, polygon in polygons.items()):
        while nearest < len(groups) and bounds[0] - groups[nearest][0][0] > SAME_BOX:
            nearest += 1
        for other, members in groups[nearest:]:
            near = all(abs(a - b) <= SAME_BOX for a, b in zip(bounds, other, strict=True))
            if near and _have_same_corners(polygons[number], polygons[members[0]]):
                members.append(number)
                break
        else:
            groups.append((bounds, [number]))
    return [sorted(members) for _, members in groups if len(members) > 1]


_Bounds = tuple[float, float, float, float]


def _bounds(polygon: np.ndarray) -> _Bounds:
    x, y = zip(*polygon.tolist(), strict=True)  # with few corners faster than NumPy
    return min(x), min(y), max(x), max(y)


def _have_same_corners(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the polygons [P, 2] and [Q, 2] have the same corners to `SAME_BOX`, in any order."""
    near = np.abs(a[:, None] - b[None]).max(axis=2) <= SAME_BOX
    return bool(near.any(axis=0).all() and near.any(axis=1).all())
