"""Lines of annotation files: what may be missing, copies of boxes, units, texts that are changed or left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from anytext2.data import annotation_items
from anytext2.data.annotations import load_records
from anytext2.data.limits import LIMITS, limit_of
from tests.helpers.annotation_files import SQUARE, apart, line, write


def test_a_minimal_annotation_is_polygon_and_text(tmp_path: Path) -> None:
    lines = apart(line(language=..., text="药房"), {"polygon": SQUARE, "text": "OPEN"}, line(language=None), line())
    (record,), report = load_records(write(tmp_path, [{"img_name": "a", "annotations": lines}], data_root=...))
    assert [line.language for line in record.lines] == ["Chinese", "Latin", "Latin", "Latin"]
    assert dict(report.notes) == {"lines: language missing (inferred from the script)": 3}
    assert report.textless == 0 and "without text" not in str(report)
    assert record.image_path == tmp_path / "a" and dict(report.skipped) == {}


def _box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


@pytest.mark.parametrize("again", [_box(0, 0, 9, 9), _box(0.6, 0.4, 9, 9.9), _box(0, 0, 9, 9)[2:] + SQUARE[:2]])
def test_a_copy_of_a_box_with_the_same_text_is_left_out(tmp_path: Path, again: Any) -> None:
    lines = [line(), line(polygon=_box(0, 0, 9, 30)), line(polygon=again), line(polygon=again)]
    (record,), report = load_records(write(tmp_path, [{"img_name": "a", "annotations": lines}]))
    assert [line.polygon[2].tolist() for line in record.lines] == [[9, 9], [9, 30]] and not record.ignored_polygons
    assert dict(report.skipped) == {"lines: same box twice": 2}
    assert "data_list[0].annotations[2]: the box of annotations[0]" in report.examples["lines: same box twice"]


def test_a_box_with_two_texts_is_ignored_and_boxes_that_cross_are_kept(tmp_path: Path) -> None:
    falling, rising = [[0, 0], [4, 0], [40, 36], [36, 40]], [[40, 0], [40, 4], [4, 40], [0, 36]]
    lines = [line(text="A"), line(text="B"), line(polygon=falling), line(polygon=rising)]
    (record,), report = load_records(write(tmp_path, [{"img_name": "a", "annotations": lines}]))
    assert len(record.lines) == 2 and len(record.ignored_polygons) == 2
    reason = "lines: same box with different texts (ignored by the loss)"
    assert dict(report.skipped) == {reason: 2} and "texts ['A', 'B']" in report.examples[reason]


def test_shares_of_the_picture_are_told_from_small_boxes(tmp_path: Path) -> None:
    lines = [line(polygon=_box(0.1, 0.2, 0.9, 0.4)), line(polygon=_box(0, 0, 1, 1)), line(polygon=_box(0, 0, 4, 4))]
    (record,), report = load_records(write(tmp_path, [{"img_name": "a", "annotations": lines}]))
    assert len(record.lines) == 1 and dict(report.skipped) == {"lines: coordinates like shares": 2}
    assert "annotations[0].polygon: [[0.1, 0.2], " in report.examples["lines: coordinates like shares"]


def test_every_reason_has_a_limit_or_says_why_it_has_none() -> None:
    source = Path(annotation_items.__file__ or "").read_text(encoding="utf-8")
    reasons = set(re.findall(r'SkippedError\(\s*"([^"]+)"', source))
    assert {"marked invalid", "same box twice"} <= reasons
    for reason in reasons:
        assert f"lines: {reason}" in LIMITS or f"pictures: {reason}" in LIMITS, reason
    assert all(limit.why for limit in LIMITS.values())
    with pytest.raises(AssertionError, match="'lines: new' has no entry"):
        limit_of("lines: new (ignored by the loss)")


# Texts and polygons that are changed, or that nothing can be learned from


def test_changed_texts_are_noted_and_not_left_out(tmp_path: Path) -> None:
    texts = ["OPEN", "OPEN\u200b", "u\u0308ber", "a\t b\n", "\ufeffe\u0301  x", "مفتوح"]
    item = {
        "img_name": "a",
        "caption": "u\u0308ber\n* all",
        "annotations": apart(*(line(text=text) for text in texts)),
    }
    (record,), report = load_records(write(tmp_path, [item]))
    assert [line.text for line in record.lines] == ["OPEN", "OPEN", "über", "a b", "é x", "مفتوح"]
    assert record.caption == "über   all"
    assert dict(report.skipped) == {} and dict(report.notes) == {
        "lines: text with invisible characters (dropped)": 2,
        "lines: text not in Unicode's form NFC (composed)": 2,
        "lines: text with white space other than single blanks (reduced)": 2,
        "lines: right-to-left text": 1,
    }
    assert "(used, but lines: right-to-left text: 1; lines: text not in" in str(report)
    two = load_records([write(tmp_path, [item]), write(tmp_path, [item], "b.json")])[1]
    assert two.notes["lines: text with invisible characters (dropped)"] == 4


def test_notes_count_only_what_is_in_use(tmp_path: Path) -> None:
    item = {"img_name": "a", "annotations": [line(text="a  b")]}
    report = load_records(write(tmp_path, [item] * 10), fraction=0.3)[1]
    assert list(report.notes.values()) == [3] and load_records(write(tmp_path, [{"img_name": "a"}]))[1].notes == {}


def test_texts_that_teach_nothing_are_hidden_from_the_loss(tmp_path: Path) -> None:
    texts = ["###", "*", ".", "#", "OPEN\nSHOP", "a\u2028b", "a\r\nb", "\u200b", "\u3164", "caf\ufffd", "OPEN"]
    item = {"img_name": "a", "annotations": apart(*(line(text=text) for text in texts))}
    (record,), report = load_records(write(tmp_path, [item]))
    assert [line.text for line in record.lines] == ["OPEN"] and len(record.ignored_polygons) == 10
    assert dict(report.skipped) == {
        "lines: text that marks a line as unreadable, such as ### (ignored by the loss)": 4,
        "lines: text of several rows (ignored by the loss)": 3,
        "lines: empty text (ignored by the loss)": 2,
        "lines: text with U+FFFD, left by a wrong encoding (ignored by the loss)": 1,
    }


def test_crossing_polygons_become_their_hull(tmp_path: Path) -> None:
    bow_tie, concave = [[0, 0], [9, 0], [0, 9], [9, 9]], [[0, 0], [4, 3], [9, 0], [9, 9], [4, 6], [0, 9]]
    star = [[50, 0], [79, 90], [2, 35], [98, 35], [21, 90]]  # turns one way, and crosses itself all the same
    given = [
        [[x, y + 100 * n] for x, y in polygon]
        for n, polygon in enumerate((bow_tie, concave, star, SQUARE, SQUARE[::-1]))
    ]
    lines = [line(polygon=polygon) for polygon in given]
    lines.append(line(polygon=bow_tie, valid=False))
    (record,), report = load_records(write(tmp_path, [{"img_name": "a", "annotations": lines}]))
    polygons = [line.polygon for line in record.lines]
    assert sorted(map(tuple, polygons[0].tolist())) == sorted(map(tuple, SQUARE))
    assert [polygon.tolist() for polygon in polygons[1::2]] == given[1::2]
    assert cv2.isContourConvex(polygons[0]) and cv2.isContourConvex(polygons[2]) and len(polygons[2]) == 5
    assert cv2.isContourConvex(record.ignored_polygons[0]) and polygons[0].dtype == np.float32
    assert report.notes["lines: polygon with crossing edges (its convex hull is used)"] == 2
