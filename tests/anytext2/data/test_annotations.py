"""The AnyWord JSON as records: what is read, what is left out and counted, what is a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anytext2.data.annotations import load_records
from tests.helpers.annotation_files import apart, line, load, write


def test_fields_become_a_record(tmp_path: Path) -> None:
    polygon = [[1.5, 2], [30, 2], [30, 12], [16, 14], [1.5, 12]]
    item = {
        "img_name": "a/b.jpg",
        "caption": "a * shop",
        "rec_score": 0.3,
        "annotations": [line(polygon=polygon, text="药房", language="Chinese", pos=1), line(valid=..., color=...)],
    }
    (record,), report = load_records(write(tmp_path, [item]))
    assert record.image_path == tmp_path / "imgs" / "a" / "b.jpg" and record.name == "a/b.jpg"
    assert record.caption == "a   shop"  # the placeholder belongs to the text caption alone
    assert [line.text for line in record.lines] == ["药房", "OPEN"]
    assert record.lines[0].color == (1, 2, 3) and record.lines[1].color is None
    np.testing.assert_array_equal(record.lines[0].polygon, np.array(polygon, np.float32))
    assert record.lines[0].polygon.dtype == np.float32 and record.ignored_polygons == ()
    assert (report.pictures, report.lines, dict(report.skipped)) == (1, 2, {})


def test_absolute_root_and_several_files(tmp_path: Path) -> None:
    first = write(tmp_path, [{"img_name": "1.png"}], "a.json", data_root="/somewhere")
    second = write(tmp_path, [{"img_name": "2.png"}], "b.json")
    records, report = load_records([first, second])
    assert [record.image_path for record in records] == [Path("/somewhere/1.png"), tmp_path / "imgs" / "2.png"]
    assert records[0].caption == "" and records[0].lines == () and report.pictures == 2


def test_unusable_lines_are_counted_and_hidden_from_the_loss(tmp_path: Path) -> None:
    lines = apart(
        line(valid=False, text=..., language=...),
        line(polygon=[]),
        line(text="  "),
        line(valid=None),  # only an explicit false is invalid
        line(color=[500, 500, 500]),
    )
    (record,), report = load_records(write(tmp_path, [{"img_name": "x", "annotations": lines}]))
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
    path = write(tmp_path, [*items, {"img_name": "none", "caption": "c"}])
    records, report = load_records(path, wm_threshold=0.6, cap_watermark=True)
    assert [r.caption for r in records] == ["c no watermarks ", "c no watermarks ", "c with watermarks ", "c"]
    assert dict(report.skipped) == {"pictures: watermark score above the threshold": 1}
    assert [record.caption for record in load_records(path)[0]] == ["c"] * 5


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, 10), (0.5, 5), (0.26, 3), (0.01, 1)])
def test_fraction_is_exact(tmp_path: Path, fraction: float, kept: int) -> None:
    records, report = load_records(write(tmp_path, [{"img_name": str(n)} for n in range(10)]), fraction=fraction)
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
        ([{"img_name": "a", "annotations": [line(text=...)]}], {}, "annotations[0].text", "missing"),
        ([{"img_name": "a", "annotations": [line(language=7)]}], {}, "annotations[0].language", "expected a string"),
        ([{"img_name": "a", "annotations": [line(polygon=...)]}], {}, "annotations[0].polygon", "missing"),
        ([{"img_name": "a", "annotations": [line(polygon=[[1, 2], [3]])]}], {}, "annotations[0].polygon", "pairs"),
        ([{"img_name": "a", "annotations": [line(polygon=[[1, 2], [3, 4]])]}], {}, "[0].polygon", "three"),
        ([{"img_name": "a", "annotations": [line(polygon=[["a", 2]] * 3)]}], {}, "[0].polygon", "pairs"),
        ([{"img_name": "a", "annotations": [line(color=[1, 2, 300])]}], {}, "annotations[0].color", "0..255"),
        ([{"img_name": "a", "annotations": [line(polygon=[1, 2, 3, 4])]}], {}, "[0].polygon", "[x, y, width, height]"),
        ([{"img_name": "a", "annotations": [line(polygon=[[1, 2], [3, 4]])]}], {}, "[0].polygon", "opposite corners"),
        ([{"img_name": "a", "annotations": [line(polygon=[1, 2, 3, 4, 5, 6, 7, 8])]}], {}, "[0].polygon", "as pairs"),
        ([], {"data_root": 7}, "data_root", "expected a string"),
        ([], {"data_list": "x"}, "data_list", "expected a list"),
    ],
)
def test_faults_name_file_and_field(
    tmp_path: Path, items: list[Any], top: dict[str, Any], where: str, what: str
) -> None:
    path = write(tmp_path, items, **top)
    with pytest.raises(ValueError) as error:
        load_records(path)
    message = str(error.value)
    assert message.startswith(str(path)) and where in message and what in message and "\n" not in message


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"{]", "not JSON"), (b"\xff\xfe\xfa", "save the file as UTF-8"), (b"[1]", "expected an object")],
)
def test_files_that_are_no_annotations(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as error:
        load_records(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        load_records(tmp_path / "absent.json")


# Single faults, and how many of them are too many


def test_a_faulty_item_is_left_out_and_counted(tmp_path: Path) -> None:
    items = [{"img_name": "a"}, {"img_name": 3}, 7, {"img_name": "b"}, {"img_name": None}, {"img_name": "c\0"}]
    records, report = load(tmp_path, items)
    assert [r.name for r in records] == ["a", "b"]
    assert dict(report.skipped) == {"pictures: faulty img_name": 3, "pictures: not an object": 1}
    assert report.examples["pictures: faulty img_name"].endswith("data_list[1].img_name: expected a string, got 3")
    assert "faulty img_name: 3, first" in str(report) and "\n" not in str(report)


def test_a_faulty_line_leaves_its_item_and_its_place(tmp_path: Path) -> None:
    far, nan = [[0, 0], [9, 0], [9, 2e6]], [[0, 0], [9, 0], [9, float("nan")]]
    lines = [line(), line(color=[1, 2]), line(text=3), line(polygon=far), line(polygon=nan), line(language=[])]
    (record,), report = load(tmp_path, [{"img_name": "a", "annotations": [*lines, "x"]}])
    assert len(record.lines) == 1 and len(record.ignored_polygons) == 3
    assert dict(report.skipped) == {
        "lines: faulty color (ignored by the loss)": 1,
        "lines: faulty text (ignored by the loss)": 1,
        "lines: faulty polygon": 2,
        "lines: faulty language (ignored by the loss)": 1,
        "lines: not an object": 1,
    }
    assert (
        "data_list[0].annotations[3].polygon: expected pixels up to 1000000" in report.examples["lines: faulty polygon"]
    )
    assert "annotations[6]: expected an object" in report.examples["lines: not an object"]


def test_too_many_faulty_items_are_the_authors_to_mend(tmp_path: Path) -> None:
    items: list[Any] = [{"img_name": str(n)} for n in range(200)]
    items[50], items[60] = {"img_name": "x", "annotations": [line(text=1), line(text=2)]}, {}
    records, report = load_records(write(tmp_path, items))
    assert len(records) == 199 and report.skipped["lines: faulty text (ignored by the loss)"] == 2
    items[70] = {}
    with pytest.raises(ValueError) as error:
        load_records(write(tmp_path, items))
    message = str(error.value)
    assert "data_list[50].annotations[0].text: expected a string, got 1 (3 of 200 items have a fault" in message
    assert len(load_records(write(tmp_path, items), max_faulty=0.015)[0]) == 198
    with pytest.raises(ValueError, match="max_faulty: 1.5"):
        load_records(write(tmp_path, items), max_faulty=1.5)


def test_a_fraction_counts_only_what_is_in_use(tmp_path: Path) -> None:
    good = {"img_name": "a", "annotations": [line(), line(text=" ")]}
    items: list[Any] = [good if n % 3 else {} for n in range(9000)]
    records, report = load(tmp_path, items, fraction=0.5)
    assert len(records) == report.pictures == report.lines == 3000
    assert dict(report.skipped) == {
        "pictures: faulty img_name": 1500,
        "lines: empty text (ignored by the loss)": 3000,
        "pictures: beyond the fraction in use": 4500,
    }
    assert report.languages == {"Latin": 3000}
    late = [{"img_name": "a"}] * 9 + [{}]
    assert load_records(write(tmp_path, late), fraction=0.9)[1].examples == {}


def test_pictures_outside_of_the_root_are_not_read(tmp_path: Path) -> None:
    names = ["/etc/a.png", "../a.png", "b/../../a.png", "..", "b/../a.png", "..a.png"]
    records, report = load(tmp_path, [{"img_name": name} for name in names])
    assert [r.name for r in records] == ["b/../a.png", "..a.png"]
    assert dict(report.skipped) == {"pictures: name outside data_root": 4}
    assert "'/etc/a.png' is not below data_root" in report.examples["pictures: name outside data_root"]


def test_polygons_without_area(tmp_path: Path) -> None:
    bow_tie = [[0, 0], [9, 0], [0, 9], [9, 9]]
    flat = [[1, 1], [5, 1], [9, 1], [1, 1]]
    lines = [line(polygon=bow_tie), line(polygon=flat), line(polygon=[[3, 3]] * 4, valid=False)]
    (record,), report = load(tmp_path, [{"img_name": "a", "annotations": lines}])
    assert len(record.lines) == 1 and record.ignored_polygons == ()
    assert dict(report.skipped) == {"lines: polygon with an area below one pixel": 2}
    assert "annotations[1].polygon: [[1, 1], [5, 1]" in report.examples["lines: polygon with an area below one pixel"]


def test_half_surrogates(tmp_path: Path) -> None:
    lines = [line(text="a\ud800"), line(text="\U0001f600"), line(language="\udc00")]
    items = [{"img_name": "a", "annotations": lines}, {"img_name": "\udfff"}, {"img_name": "b", "caption": "\ud800"}]
    (record,), report = load(tmp_path, items)
    assert [line.text for line in record.lines] == ["\U0001f600"] and len(record.ignored_polygons) == 2
    assert report.skipped["lines: text with unpaired surrogates (ignored by the loss)"] == 1
    assert report.skipped["pictures: faulty img_name"] == report.skipped["pictures: faulty caption"] == 1
    str(report).encode("utf-8")


def test_any_order_any_mark_and_unknown_fields(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    text = (
        '{"info": [{"data_root": "no"}], "data_list": [{"img_name": "a", "img_name": "b"}], "data_root": "r", "x": {}}'
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (record,), _ = load_records(path)
    assert record.image_path == tmp_path / "r" / "b"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"data_root": "a", "data_root": "b", "data_list": []}', "data_root: the file has this field twice"),
        ('{"data_list": [], "data_root": "b", "data_list": []}', "data_list: the file has this field twice"),
        ('{"data_root": "a\\u0000", "data_list": []}', "not the name of a folder"),
        ('{"data_root": ["a"], "data_list": []}', "data_root: expected a string"),
        ('{"data_root": "a", "data_list": [' + '{"img_name":' * 5000, "nested too deeply"),
        ('{"data_root": "a", "data_list": [{"img_name": "a"}', "not JSON (line 1, character 50, the end of the file"),
    ],
)
def test_faults_of_the_whole_file(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_records(path, max_faulty=1.0)
    assert str(error.value).startswith(str(path)) and what in str(error.value) and "\n" not in str(error.value)


def test_sources_and_languages_are_counted(tmp_path: Path) -> None:
    lines = apart(line(), line(language="Chinese"))
    first = write(tmp_path, [{"img_name": "1", "annotations": lines}, {}], "a.json")
    second = write(tmp_path, [{"img_name": n, "annotations": [line()]} for n in "234"] + [3], "b.json")
    records, report = load_records([first, second], max_faulty=0.5)
    assert report.per_source == (1, 3) and records.sources.tolist() == [0, 1, 1, 1]
    assert report.languages == {"Latin": 4, "Chinese": 1} and report.lines == 5
    assert "4 pictures from 2 files (1 + 3) with 5 lines (4 Latin, 1 Chinese) (left out: " in str(report)
    assert [str(first) in e or str(second) in e for e in report.examples.values()] == [True, True]


def test_a_file_of_strange_languages_is_still_one_short_line(tmp_path: Path) -> None:
    lines = apart(*(line(language=f"{chr(7)}{number:02}" + "x" * 1000) for number in range(15)), line())
    report = load_records(write(tmp_path, [{"img_name": "a", "annotations": lines}]))[1]
    told = str(report)
    assert "7 in 6 other languages" not in told and "6 in 6 other languages" in told
    assert len(told) < 400 and told.isprintable() and "\\x0700xxx" in told


# What need not be there, and what occurs twice
