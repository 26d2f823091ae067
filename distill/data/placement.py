"""Where lines of text lie in their pictures, and signs that their coordinates are not pixels.

Everything is a count of lines, so that counts of many pictures add up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from anytext2.core.batch import TextLine

PARTLY_OUTSIDE = "partly outside the picture"
MOSTLY_OUTSIDE = "mostly outside the picture"
WHOLLY_OUTSIDE = "wholly outside the picture (line left out)"
COUNTER_CLOCKWISE = "corners run counter-clockwise"

_EDGE = 1.0  # pixels: a corner on the border, or rounded to just beyond it, is no fault

# Signs
LINES = "lines"
_LARGER, _PERCENT = "in a picture of more than 110 pixels", "there within 0 to 100"
_RIGHT, _LOWER = "there beyond x = 50", "there beyond y = 50"
_WORDS, _MIRRORED = "of two characters or more", "of these in a tall box with counter-clockwise corners"
_LATIN, _UPRIGHT = "of four Latin letters or more", "of these in a tall box that is upright"
_OUTSIDE, _AS_SWAPPED, _AS_THOUSANDTHS = "outside", "outside but for x and y", "outside but for the unit"

EVIDENCE = "evidence of percent"
"""Sum over the lines of how unlikely it is that one lies within 0 to 100 by chance, in hundredths of nats."""

_LEAST_EVIDENCE = 460  # by chance in one file of a hundred
_TALL = 1.5  # height / width
_FEW = 5  # fewer boxes than that prove nothing


def outside(polygon: np.ndarray, size: tuple[int, int]) -> str:
    """How far the polygon [P, 2] lies outside a picture of `size` (width, height); empty for not at all."""
    low, high, edge = polygon.min(axis=0), polygon.max(axis=0), np.array(size, np.float32)
    if max((-low).max(), (high - edge).max()) <= _EDGE:
        return ""
    inside = np.clip(np.minimum(high, edge) - np.maximum(low, 0), 0, None) / np.maximum(high - low, 1e-3)
    share = float(inside.prod())
    if share == 0:
        return WHOLLY_OUTSIDE
    return PARTLY_OUTSIDE if share >= 0.5 else MOSTLY_OUTSIDE


def is_clockwise(polygon: np.ndarray) -> bool:
    """Whether the corners [P, 2] run clockwise, as in AnyWord. The y axis points down."""
    x, y = polygon.astype(np.float64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) >= 0


def count_signs(counts: Counter[str], line: TextLine, size: tuple[int, int]) -> list[str]:
    """Adds the signs of a line in a picture of `size` (width, height), and returns them."""
    found = [LINES, *_percent_signs(line, size), *_turned_signs(line), *_outside_signs(line, size)]
    counts.update(found)
    counts[EVIDENCE] += round(100 * math.log(max(1.0, size[0] * size[1] / 100**2)))
    return found


def _percent_signs(line: TextLine, size: tuple[int, int]) -> Iterator[str]:
    if min(size) <= 110:
        return
    yield _LARGER
    (left, top), (right, bottom) = line.polygon.min(axis=0).tolist(), line.polygon.max(axis=0).tolist()
    if min(left, top) >= -0.5 and max(right, bottom) <= 100.5:
        yield _PERCENT
        if right > 50:
            yield _RIGHT
        if bottom > 50:
            yield _LOWER


def _turned_signs(line: TextLine) -> Iterator[str]:
    width, height = np.ptp(line.polygon, axis=0).tolist()
    is_tall = height > _TALL * width
    if len(line.text) > 1:
        yield _WORDS
        if is_tall and not is_clockwise(line.polygon):
            yield _MIRRORED
    if sum(char.isalpha() and char < "\u0250" for char in line.text) >= 4:
        yield _LATIN
        x, y = np.abs(line.polygon[1] - line.polygon[0]).tolist()  # the first edge, along which the text runs
        if is_tall and x > y:
            yield _UPRIGHT


def _outside_signs(line: TextLine, size: tuple[int, int]) -> Iterator[str]:
    if outside(line.polygon, size) not in (MOSTLY_OUTSIDE, WHOLLY_OUTSIDE):
        return
    yield _OUTSIDE
    if not outside(line.polygon[:, ::-1], size):
        yield _AS_SWAPPED
    if not outside(line.polygon, (1000, 1000)):
        yield _AS_THOUSANDTHS


@dataclass(frozen=True)
class Suspicion:
    """What the coordinates of a file look like instead of pixels. sign: that its lines have; count: how many do."""

    sign: str
    count: int
    message: str


def suspicion(counts: Mapping[str, int]) -> Suspicion | None:
    """Whether the coordinates that lie inside their pictures cannot be meant so."""
    percent, larger = counts.get(_PERCENT, 0), counts.get(_LARGER, 0)
    is_likely = percent == larger > counts.get(LINES, 0) / 2 and counts.get(_RIGHT, 0) and counts.get(_LOWER, 0)
    if is_likely and percent > 1 and counts.get(EVIDENCE, 0) >= _LEAST_EVIDENCE:
        message = (
            "coordinates look like percent of the picture (all lie within 0 to 100), pixels are needed: multiply x by "
            "its width / 100 and y by its height / 100"
        )
        return Suspicion(_PERCENT, percent, message)
    for texts, turned, pair in ((_WORDS, _MIRRORED, "x and y"), (_LATIN, _UPRIGHT, "width and height")):
        count = counts.get(turned, 0)
        if count >= _FEW and count > 0.8 * counts[texts]:
            return Suspicion(turned, count, f"{pair} look swapped: texts run along the shorter side of their boxes")
    return None


def remedy_outside(counts: Mapping[str, int]) -> str:
    """How most of the boxes outside would come to lie inside; empty if it is not known."""
    if counts.get(_AS_SWAPPED, 0) > counts.get(_OUTSIDE, 0) / 2:
        return "most of them lie inside with x and y swapped"
    if counts.get(_AS_THOUSANDTHS, 0) > counts.get(LINES, 0) / 2:
        return "most of them lie inside as thousandths: multiply x by the width / 1000 and y by the height / 1000"
    return ""
