from __future__ import annotations

import numpy as np
import pytest

from distill.evaluation.ocr_sheet import GREEN, RED, matching_parts, reading_sheet
from distill.viz.grids import SampleImages

ROWS = [("student", "student 4"), ("teacher", "teacher 20")]


def shown(recognized: dict[str, tuple[str, ...]]) -> SampleImages:
    picture = np.full((64, 64, 3), 128, np.uint8)
    return SampleImages(
        "a.png", picture, picture, {key: picture for key, _ in ROWS}, "a caption", ("HELLO", "中文"), recognized
    )


def count(sheet: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((sheet == np.array(color)).all(axis=2).sum())


def test_ticks_are_green_and_faults_red() -> None:
    right = {key: ("HELLO", "中文") for key in ("originals", "student", "teacher")}
    sheets = [
        np.array(reading_sheet([shown(read)], ROWS, panel=200))
        for read in ({}, right, {**right, "student": ("HELO", "")}, {**right, "teacher": ("XXXXX", "口口")})
    ]
    assert count(sheets[0], GREEN) == count(sheets[0], RED) == 0
    assert count(sheets[1], GREEN) > 100 and count(sheets[1], RED) == 0
    assert count(sheets[2], RED) > 50 and 0 < count(sheets[2], GREEN) < count(sheets[1], GREEN)
    columns = np.flatnonzero((sheets[3] == np.array(RED)).all(axis=2).any(axis=0))
    assert columns.min() >= 8 + 2 * 208  # the third picture's column, and nowhere else
    assert sheets[1].shape[0] > sheets[0].shape[0] > 200  # verdicts stand below the pictures


def test_rows_that_do_not_fit_go_below() -> None:
    many = [(f"row {n}", f"student {n}") for n in range(8)]
    picture = np.zeros((64, 64, 3), np.uint8)
    one = SampleImages("a", picture, picture, {key: picture for key, _ in many})
    wide, high = reading_sheet([one], many, panel=100).size
    assert wide == 8 + 6 * 108 and high > 2 * 100


@pytest.mark.parametrize(
    ("found", "truth", "parts"),
    [
        ("HELLO", "HELLO", [("HELLO", True)]),
        ("HXLLO", "HELLO", [("H", True), ("X", False), ("LLO", True)]),
        ("HEL LO", "HELLO", [("HELLO", True)]),
        ("中口", "中文", [("中", True), ("口", False)]),
        ("", "A", []),
    ],
)
def test_wrong_characters_are_told_from_right_ones(found: str, truth: str, parts: list) -> None:
    assert matching_parts(found, truth) == parts
