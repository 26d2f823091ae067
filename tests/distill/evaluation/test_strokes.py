"""The structure score, on pictures with a known answer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from distill.evaluation.strokes import compare_ink, line_structure, segment_ink

BOX = np.array([[10, 20], [110, 20], [110, 60], [10, 60]], dtype=np.float32)


def page(text: str = "Stone", x: int = 14) -> np.ndarray:
    ink = np.zeros((80, 120), np.uint8)
    cv2.putText(ink, text, (x, 50), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 1, 3, cv2.LINE_8)
    return ink


def painted(ink: np.ndarray, color: tuple[int, int, int], ground: np.ndarray) -> np.ndarray:
    return np.where(ink[..., None] > 0, np.array(color, np.uint8), ground).astype(np.uint8)


def clutter(seed: int = 0, amplitude: int = 25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.integers(-amplitude, amplitude + 1, (10, 15, 3)).astype(np.float32), (120, 80))
    return np.clip(np.array([60, 90, 140], np.float32) + noise, 0, 255).astype(np.uint8)


def score(image: np.ndarray, glyphs: np.ndarray) -> float:
    found = line_structure(image, BOX, glyphs)
    assert found is not None
    return found.score


@pytest.mark.parametrize("color", [(250, 240, 230), (5, 5, 5), (200, 30, 30)])
def test_the_glyphs_themselves_agree_in_any_colour_on_any_ground(color: tuple[int, int, int]) -> None:
    assert score(painted(page(), color, clutter()), page()) > 0.93


def test_a_small_shift_is_forgiven_and_a_large_one_is_not() -> None:
    exact, near, far = (score(painted(page(x=x), (250, 250, 250), clutter()), page()) for x in (14, 16, 26))
    assert near > exact - 0.08
    assert far < exact - 0.4


def test_what_a_reader_forgives_costs_structure() -> None:
    """Broken strokes, strokes of another weight and another text, from little to much."""
    whole = score(painted(page(), (250, 250, 250), clutter()), page())
    broken = page()
    broken[:, ::5] = 0
    torn = score(painted(broken, (250, 250, 250), clutter()), page())
    bold = score(painted(cv2.dilate(page(), np.ones((3, 3))), (250, 250, 250), clutter()), page())
    other = score(painted(page("Walk"), (250, 250, 250), clutter()), page())
    empty = score(clutter(), page())
    assert whole > torn > other and whole > bold > other and other < 0.6 and empty < 0.6


def test_a_box_without_glyphs_is_not_scored() -> None:
    assert line_structure(clutter(), BOX, np.zeros((80, 120), np.uint8)) is None
    assert line_structure(clutter(), BOX, np.ones((80, 120), np.uint8)) is None


def test_a_flat_line_has_no_ink() -> None:
    wanted = page()[20:60, 10:110] > 0
    assert not segment_ink(np.full((*wanted.shape, 3), 77, np.uint8), wanted).any()
    found = compare_ink(np.zeros_like(wanted), wanted)
    assert (found.overlap, found.strokes, found.score) == (0.0, 0.0, 0.0)


def test_overlap_and_outlines_of_squares_are_what_geometry_says() -> None:
    first, second = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    first[10:30, 10:30] = True
    second[10:30, 10 + 9 : 30 + 9] = True  # 9 to the right, of which 3 are made good
    found = compare_ink(second, first)
    assert found.overlap == pytest.approx((20 * 14) / (2 * 400 - 20 * 14))
    # Of 76 pixels of outline are near: 14 common ones and 2 more of top and bottom, and 2 at each end of one side.
    assert found.strokes == pytest.approx(36 / 76)


# --- distributions ---
