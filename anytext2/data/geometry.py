"""Where the lines of a record lie in a sample of another size than the picture file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from anytext2.core.batch import Record, TextLine
from anytext2.glyphs import render

Size = tuple[int, int]
"""Height and width of a picture in pixels."""


def fit_record(record: Record, file_size: Size, size: Size) -> Record:
    """The record of a picture file of one size (H, W), for a sample of another.

    Lines of which nothing is in the picture are left out; a record without text gets a blank line.
    """
    record = scale_record(record, file_size, size)
    lines = tuple(line for line in record.lines if not is_outside_image(line.polygon, size))
    return replace(record, lines=lines or (_no_text(size),))


def scale_record(record: Record, file_size: Size, size: Size) -> Record:
    """The record of a picture file of one size (H, W) in the pixels of a sample of another, with all its lines."""
    return clip_polygons(scale_polygons(record, size[1] / file_size[1], size[0] / file_size[0]), size)


def is_outside_image(polygon: np.ndarray, size: Size) -> bool:
    """Whether no pixel of a picture of this size (H, W) belongs to the polygon."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    if low.min() >= 0 and high[0] < size[1] and high[1] < size[0]:
        return False  # nearly all are: spares the drawing
    return not render.fill_polygons([polygon], size).any()


def scale_polygons(record: Record, x: float, y: float) -> Record:
    """The record with all polygons scaled as the picture is."""
    factor = np.array([x, y], np.float32)
    return _moved(record, lambda polygon: polygon * factor)


def clip_polygons(record: Record, size: Size) -> Record:
    """The record with every corner that lies more than a picture's size (H, W) outside of the picture brought there.

    What is annotated so far out is not in the picture, but a line of a hundred times its size would be drawn.
    """
    far = np.array([size[1], size[0]], np.float32)
    return _moved(record, lambda polygon: np.clip(polygon, -far, 2 * far))


def _moved(record: Record, move: Callable[[np.ndarray], np.ndarray]) -> Record:
    lines = tuple(TextLine(line.text, move(line.polygon), line.language, line.color) for line in record.lines)
    return replace(record, lines=lines, ignored_polygons=tuple(map(move, record.ignored_polygons)))


def _no_text(size: Size) -> TextLine:
    """What stands for the text of a picture without any: a blank line in a corner."""
    corner = np.array([(10, 10), (100, 10), (100, 100), (10, 100)], np.float32)
    return TextLine(" ", corner * np.array([size[1], size[0]], np.float32) / render.REFERENCE_RESOLUTION, "Latin", None)
