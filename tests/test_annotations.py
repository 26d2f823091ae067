"""The AnyWord JSON as records: what is read, what is left out and counted, what is a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anytext2.annotations import load_records

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9]]


def _line(**changes: Any) -> dict[str, Any]:
    line = {"polygon": SQUARE, "text": "OPEN", "language": "Latin", "color": [1, 2, 3], "valid": True, **changes}
    return {name: value for name, value in line.items() if value is not ...}


def _write(folder: Path, items: list[Any], name: str = "data.json", **top: Any) -> Path:
    path = folder / name
    content = {"data_root": "imgs", "data_list": items, **top}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}), encoding="utf-8")
    return path


def test_fields_become_a_record(tmp_path: Path) -> None:
    polygon = [[1.5, 2], [30, 2], [30, 12], [16, 14], [1.5, 12]]
    item = {
        "img_name": "a/b.jpg",
        "caption": "a * shop",
        "rec_score": 0.3,
        "annotations": [_line(polygon=polygon, text="药房", language="Chinese", pos=1), _line(valid=..., color=...)],
    }
    (record,), report = load_records(_write(tmp_path, [item]))
    assert record.image_path == tmp_path / "imgs" / "a" / "b.jpg" and record.name == "a/b.jpg"
    assert record.caption == "a   shop"  # the placeholder belongs to the text caption alone
    assert [line.text for line in record.lines] == ["药房", "OPEN"]
    assert record.lines[0].color == (1, 2, 3) and record.lines[1].color is None
    np.testing.assert_array_equal(record.lines[0].polygon, np.array(polygon, np.float32))
    assert record.lines[0].polygon.dtype == np.float32 and record.ignored_polygons == ()
    assert (report.pictures, report.lines, dict(report.skipped)) == (1, 2, {})


def test_absolute_root_and_several_files(tmp_path: Path) -> None:
    first = _write(tmp_path, [{"img_name": "1.png"}], "a.json", data_root="/somewhere")
    second = _write(tmp_path, [{"img_name": "2.png"}], "b.json")
    records, report = load_records([first, second])
    assert [record.image_path for record in records] == [Path("/somewhere/1.png"), tmp_path / "imgs" / "2.png"]
    assert records[0].caption == "" and records[0].lines == () and report.pictures == 2


def test_unusable_lines_are_counted_and_hidden_from_the_loss(tmp_path: Path) -> None:
    lines = [
        _line(valid=False, text=..., language=...),
        _line(polygon=[]),
        _line(text="  "),
        _line(valid=None),  # only an explicit false is invalid
        _line(color=[500, 500, 500]),
    ]
    (record,), report = load_records(_write(tmp_path, [{"img_name": "x", "annotations": lines}]))
    assert len(record.lines) == 2 and len(record.ignored_polygons) == 2
    assert record.lines[1].color is None
    assert dict(report.skipped) == {
        "lines: marked invalid (ignored by the loss)": 1,
        "lines: empty polygon": 1,
        "lines: empty text (ignored by the loss)": 1,
    }
    assert "lines: empty polygon: 1" in str(report) and "1 pictures with 2 lines" in str(report)


def test_watermarks(tmp_path: Path) -> None:
    items = [{"img_name": str(score), "caption": "c", "wm_score": score} for score in (0, 0.5, 0.51, 0.9)]
    path = _write(tmp_path, [*items, {"img_name": "none", "caption": "c"}])
    records, report = load_records(path, wm_threshold=0.6, cap_watermark=True)
    assert [r.caption for r in records] == ["c no watermarks ", "c no watermarks ", "c with watermarks ", "c"]
    assert dict(report.skipped) == {"pictures: watermark score above the threshold": 1}
    assert [record.caption for record in load_records(path)[0]] == ["c"] * 5


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, 10), (0.5, 5), (0.26, 3), (0.01, 1)])
def test_fraction_is_exact(tmp_path: Path, fraction: float, kept: int) -> None:
    records, report = load_records(_write(tmp_path, [{"img_name": str(n)} for n in range(10)]), fraction=fraction)
    assert [record.name for record in records] == [str(n) for n in range(kept)]
    assert report.skipped.get("pictures: beyond the fraction in use", 0) == 10 - kept


@pytest.mark.parametrize(
    ("items", "top", "where", "what"),
    [
        ([{}], {}, "data_list[0].img_name", "missing"),
        ([{"img_name": "a"}, {"img_name": 3}], {}, "data_list[1].img_name", "expected a string"),
        ([{"img_name": "a", "caption": ["x"]}], {}, "data_list[0].caption", "expected a string"),
        ([{"img_name": "a", "wm_score": "high"}], {}, "data_list[0].wm_score", "expected a number"),
        ([{"img_name": "a", "annotations": {}}], {}, "data_list[0].annotations", "expected a list"),
        ([7], {}, "data_list[0]", "expected an object"),
        ([{"img_name": "a", "annotations": [_line(text=...)]}], {}, "annotations[0].text", "missing"),
        ([{"img_name": "a", "annotations": [_line(language=...)]}], {}, "annotations[0].language", "missing"),
        ([{"img_name": "a", "annotations": [_line(polygon=...)]}], {}, "annotations[0].polygon", "missing"),
        ([{"img_name": "a", "annotations": [_line(polygon=[[1, 2], [3]])]}], {}, "annotations[0].polygon", "pairs"),
        ([{"img_name": "a", "annotations": [_line(polygon=[[1, 2], [3, 4]])]}], {}, "[0].polygon", "three"),
        ([{"img_name": "a", "annotations": [_line(polygon=[["a", 2]] * 3)]}], {}, "[0].polygon", "pairs"),
        ([{"img_name": "a", "annotations": [_line(color=[1, 2, 300])]}], {}, "annotations[0].color", "0..255"),
        ([], {"data_root": ...}, "data_root", "missing"),
        ([], {"data_list": "x"}, "data_list", "expected a list"),
    ],
)
def test_faults_name_file_and_field(
    tmp_path: Path, items: list[Any], top: dict[str, Any], where: str, what: str
) -> None:
    path = _write(tmp_path, items, **top)
    with pytest.raises(ValueError) as error:
        load_records(path)
    message = str(error.value)
    assert message.startswith(str(path)) and where in message and what in message and "\n" not in message


@pytest.mark.parametrize(
    ("content", "what"), [(b"{]", "not JSON"), (b"\xff\xfe\xfa", "cannot read"), (b"[1]", "expected an object")]
)
def test_files_that_are_no_annotations(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as error:
        load_records(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        load_records(tmp_path / "absent.json")
