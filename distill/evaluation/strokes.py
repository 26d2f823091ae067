"""Stroke structure of a line: do its strokes lie where its glyphs have them? An OCR engine does not notice that.

The ink of a line is segmented by colour: pixels are projected on the direction in which glyph and background differ
most (Fisher's discriminant) and split by Otsu's threshold. The ink is compared with the glyph page in the line's box.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from distill.evaluation.ocr import upright_crop

MAX_SHIFT = 3
"""Pixels, in a line scaled to a height of 48, by which the ink may be shifted to fit: a sixteenth of the height."""

OUTLINE_TOLERANCE = 2.0
"""Pixels, in a line scaled to a height of 48, within which two outlines agree."""


@dataclass(frozen=True)
class LineStructure:
    """Agreement of a line's ink with its glyphs, at the shift with the greatest overlap; both in 0..1.

    overlap: intersection over union. strokes: boundary F-score (Csurka et al. 2013).
    """

    overlap: float
    strokes: float

    @property
    def score(self) -> float:
        return (self.overlap + self.strokes) / 2.0


def line_structure(image: np.ndarray, polygon: np.ndarray, page: np.ndarray) -> LineStructure | None:
    """The agreement for one line; None where the glyph page has no ink, or nothing but ink, in the line's box.

    image: uint8 RGB [H, W, 3]; polygon: [P, 2] in its pixels; page: uint8 [H*g, W*g] in {0, 1}, the glyphs' ink.
    """
    size = (image.shape[1], image.shape[0])
    glyphs = cv2.resize(page * np.uint8(255), size, interpolation=cv2.INTER_AREA)
    wanted = upright_crop(np.repeat(glyphs[..., None], 3, axis=2), polygon)[..., 0] > 127
    if not wanted.any() or wanted.all():
        return None
    return compare_ink(segment_ink(upright_crop(image, polygon), wanted), wanted)


def segment_ink(line: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The pixels, bool [h, w], of a line uint8 [h, w, 3] whose colour is more like those under `wanted`."""
    colors = line.reshape(-1, 3).astype(np.float64)
    inside = wanted.reshape(-1)
    difference = colors[inside].mean(axis=0) - colors[~inside].mean(axis=0)
    within = sum(np.cov(part, rowvar=False, bias=True) * len(part) for part in (colors[inside], colors[~inside]))
    direction = np.linalg.solve(within / len(colors) + np.eye(3), difference)
    values = colors @ direction
    spread = float(np.ptp(values))
    if spread == 0.0:
        return np.zeros_like(wanted)
    scaled = np.round((values - values.min()) / spread * 255.0).astype(np.uint8)
    _, ink = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(ink, dtype=bool).reshape(wanted.shape)


def compare_ink(ink: np.ndarray, wanted: np.ndarray) -> LineStructure:
    """Two bool [h, w]; `ink` is moved by up to MAX_SHIFT pixels to where it overlaps most."""
    around = np.pad(ink, MAX_SHIFT)
    height, width = wanted.shape
    best, moved = -1.0, ink
    for dy in range(2 * MAX_SHIFT + 1):
        for dx in range(2 * MAX_SHIFT + 1):
            candidate = around[dy : dy + height, dx : dx + width]
            overlap = float((candidate & wanted).sum() / (candidate | wanted).sum())
            if overlap > best:
                best, moved = overlap, candidate
    return LineStructure(best, _outline_agreement(moved, wanted))


def _outline_agreement(first: np.ndarray, second: np.ndarray) -> float:
    outlines = [_outline(mask) for mask in (first, second)]
    if not all(outline.any() for outline in outlines):
        return 0.0
    one, other = outlines
    precision = float((_distance_to(other)[one] <= OUTLINE_TOLERANCE).mean())
    recall = float((_distance_to(one)[other] <= OUTLINE_TOLERANCE).mean())
    return 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels with a neighbour outside it; the picture's border is no outline."""
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return mask & (eroded == 0)


def _distance_to(outline: np.ndarray) -> np.ndarray:
    distance: np.ndarray = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance
