"""Finds boxes that a picture has twice: label tools write copies.

If the texts are the same, the first line is kept. If they differ, it is not known which one is right: none is kept, and
the region is ignored by the loss.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from anytext2.core.batch import TextLine
from anytext2.data.annotation_items import SkippedError

SAME_BOX = 1.0
"""Two boxes are the same if each corner of one has a corner of the other so near, in pixels along both axes."""


def without_repeats(parsed: Iterable[TextLine | SkippedError]) -> list[TextLine | SkippedError]:
    """The annotations of a picture in their order, with an error in place of each line whose box occurs twice."""
    annotations = list(parsed)
    lines = {number: line for number, line in enumerate(annotations) if isinstance(line, TextLine)}
    for group in _groups({number: line.polygon for number, line in lines.items()}):
        texts = list(dict.fromkeys(lines[number].text for number in group))
        for number in group[1:] if len(texts) == 1 else group:
            annotations[number] = _error(number, group, texts, lines[number].polygon)
    return annotations


def _error(number: int, group: list[int], texts: list[str], polygon: np.ndarray) -> SkippedError:
    others = ", ".join(f"annotations[{other}]" for other in group[:3] if other != number)
    if len(texts) == 1:
        return SkippedError("same box twice", f"annotations[{number}]", f"the box of {others}, with the same text")
    error = SkippedError(
        "same box with different texts", f"annotations[{number}]", f"the box of {others}, texts {texts[:3]}"
    )
    error.polygon = polygon
    return error


def _groups(polygons: dict[int, np.ndarray]) -> list[list[int]]:
    """Numbers of the polygons that are the same box, ascending; only groups of two or more."""
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
