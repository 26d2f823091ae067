"""What an OCR engine is blind to: whether the strokes of a line lie where its glyphs have them.

The ink of a line is what its colours tell apart from the ground along the direction in which glyph and ground differ
most (Fisher's discriminant, then Otsu's threshold). It is compared with the glyph page inside the line's box.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from distill.evaluation.ocr import crop_line

REACH = 3
"""Pixels of a line of 48 by which its ink may be moved to fit: a sixteenth of its height."""

NEAR = 2.0
"""Pixels of a line of 48 within which two outlines agree."""


@dataclass(frozen=True)
class LineStructure:
    """Agreement of a line's ink with its glyphs, both in 0..1: overlap is the intersection over the union, strokes the
    F-score of the outlines (Csurka et al. 2013), at the shift with the greatest overlap."""

    overlap: float
    strokes: float

    @property
    def score(self) -> float:
        return (self.overlap + self.strokes) / 2.0


def line_structure(image: np.ndarray, polygon: np.ndarray, page: np.ndarray) -> LineStructure | None:
    """image: uint8 RGB [H, W, 3]; polygon: [P, 2] in its pixels; page: uint8 [H*g, W*g] in {0, 1}, the glyphs' ink.

    None where the page has no ink, or nothing but ink, in the line's box.
    """
    size = (image.shape[1], image.shape[0])
    glyphs = cv2.resize(page * np.uint8(255), size, interpolation=cv2.INTER_AREA)
    wanted = crop_line(np.repeat(glyphs[..., None], 3, axis=2), polygon)[..., 0] > 127
    if not wanted.any() or wanted.all():
        return None
    return compare_ink(ink_like(crop_line(image, polygon), wanted), wanted)


def ink_like(line: np.ndarray, wanted: np.ndarray) -> np.ndarray:
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
    """Two bool [h, w]; `ink` is moved by up to REACH pixels to where it overlaps most."""
    around = np.pad(ink, REACH)
    height, width = wanted.shape
    best, moved = -1.0, ink
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
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
    precision = float((_distance_to(other)[one] <= NEAR).mean())
    recall = float((_distance_to(one)[other] <= NEAR).mean())
    return 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels with a neighbour outside it; the picture's border is no outline."""
    eroded = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return mask & (eroded == 0)


def _distance_to(outline: np.ndarray) -> np.ndarray:
    distance: np.ndarray = cv2.distanceTransform((~outline).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance
