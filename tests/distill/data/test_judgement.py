"""Annotation files that cannot teach are refused: by the check, by the cache builder and by training.

The inputs are made after public reports on label tools and data sets: shares and percent of the picture, thousandths,
boxes as [x, y, width, height], x and y swapped, width and height swapped, copies of boxes, renamed fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anytext2.data.annotations import load_records
from anytext2.data.image_file import ImageHeader
from anytext2.data.limits import LIMITS
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from distill.checks.dataset_check import check_source
from distill.checks.dataset_report import SourceCheck, reasons_unusable
from distill.data.judgement import PROBED_PICTURES, judge_records
from distill.data.placement import MOSTLY_OUTSIDE, PARTLY_OUTSIDE, WHOLLY_OUTSIDE, is_clockwise, outside
from launch import build_lmdb_cache, check_dataset
from tests.helpers.processes.ranks import run_ranks
from tests.helpers.processes.training_runs import TrainingFolder, assert_one_error, train_command

WIDTH, HEIGHT = 160, 120
Items = list[dict[str, Any]]
Corners = list[list[float]]
FONTS = load_font_table()


def box(left: float, top: float, right: float, bottom: float) -> Corners:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def good_items(width: int = WIDTH, height: int = HEIGHT) -> Items:
    """Eight pictures with 17 lines, at places that differ."""
    items = []
    for n in range(8):
        boxes = [
            box(4 + 3 * n, 6 + k * height / 3, width - 30 + 3 * n, k * height / 3 + 30) for k in range(2 + (n == 0))
        ]
        texts = ("Quilt", "Bakery", "Harbour")
        lines = [{"polygon": b, "text": t, "language": "Latin"} for b, t in zip(boxes, texts, strict=False)]
        items.append({"img_name": f"{n}.png", "caption": "a wall", "annotations": lines})
    return items


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged")
    for n in range(8):
        Image.new("RGB", (WIDTH, HEIGHT), (n, 90, 90)).save(path / f"{n}.png")
    return path


def write(folder: Path, items: Items, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"data_root": str(folder), "data_list": items}), encoding="utf-8")
    return path


def judged(path: Path, limit: float = 0.05) -> str:
    """What a run finds; raises what it raises."""
    records, report = load_records(path)
    return judge_records(records, report, DatasetConfig(resolution=64), limit, FONTS)


# --- mutations ---


def moved(change: Callable[[float, float], list[float]]) -> Callable[[Items], None]:
    return lambda items: each_line(items, lambda a: a.update(polygon=[change(x, y) for x, y in a["polygon"]]))


def each_line(items: Items, change: Callable[[dict[str, Any]], Any]) -> None:
    for item in items:
        for annotation in item["annotations"]:
            change(annotation)


def as_sides(annotation: dict[str, Any]) -> None:
    """[left, top, height, width] taken for [left, top, width, height]."""
    (left, top), _, (right, bottom), _ = annotation["polygon"]
    annotation["polygon"] = box(left, top, left + bottom - top, top + right - left)


def doubled(items: Items) -> None:
    for item in items:
        item["annotations"] *= 2


def in_doubt(items: Items) -> None:
    for item in items:
        item["annotations"] += [{**line, "text": line["text"] + "s"} for line in item["annotations"]]


def renamed(items: Items) -> None:
    for item in items:
        item["labels"] = item.pop("annotations")


def half_in_shares(items: Items) -> None:
    moved(lambda x, y: [x / WIDTH, y / HEIGHT])(items[::2])


REFUSED: dict[str, tuple[Callable[[Items], None], tuple[str, ...]]] = {
    "shares": (
        moved(lambda x, y: [x / WIDTH, y / HEIGHT]),
        ("0 of 17 lines can be used; coordinates look like shares of the picture, pixels are needed: multiply x by",
         "17, first data_list[0].annotations[0].polygon: [[0.025, "),
    ),
    "percent": (
        moved(lambda x, y: [100 * x / WIDTH, 100 * y / HEIGHT]),
        ("0 of 17 lines can be used; coordinates look like percent of the picture", "pixels are needed: multiply x by",
         "17 lines, first 0.png, 160 x 120: 'Quilt' at (2.5, "),
    ),
    "thousandths": (
        moved(lambda x, y: [1000 * x / WIDTH, 1000 * y / HEIGHT]),
        ("of 17 lines can be used; boxes lie", "inside as thousandths: multiply x by the width / 1000", "first 0.png"),
    ),
    "a hundredfold": (moved(lambda x, y: [100 * x, 100 * y]), ("0 of 17 lines can be used; boxes lie outside",)),
    "half in shares": (half_in_shares, ("8 of 17 lines can be used; coordinates look like shares",)),
    "right of the picture": (
        moved(lambda x, y: [x + WIDTH, y]),
        ("0 of 17 lines can be used; boxes lie outside of their pictures", "pixels of the picture", "17, first 0.png"),
    ),
    "x and y swapped": (
        moved(lambda x, y: [y, x]),
        ("0 of 17 lines can be used; x and y look swapped", "17 lines, first 0.png, 160 x 120: 'Quilt' at "),
    ),
    "width and height swapped": (
        lambda items: each_line(items, as_sides),
        ("of 17 lines can be used; boxes lie for the greater part outside",),
    ),
    "doubled": (
        doubled,
        ("17 of 34 lines can be used; the same box occurs twice", "remove the copies", "17, first data_list[0]."),
    ),
    "same box with two texts": (in_doubt, ("0 of 34 lines can be used; the same box has different texts", "Quilts")),
    "annotations renamed": (
        renamed,
        ("no item has the field 'annotations' (8 items, the first one has img_name, caption, labels)",),
    ),
    "annotations empty": (
        lambda items: [item.update(annotations=[]) for item in items] and None,
        ("the field 'annotations' is empty in all of its 8 items",),
    ),
    "all invalid": (
        lambda items: each_line(items, lambda a: a.update(valid=False)),
        ("0 of 17 lines can be used (lines: marked invalid (ignored by the loss): 17)",),
    ),
    "without glyphs": (
        lambda items: each_line(items, lambda a: a.update(text="\U00012000\U00012001")),
        ("0 of 17 lines can be used; fonts/ has no glyph", "fonts/fonts.yaml", "17, first 0.png"),
    ),
    "no items": (lambda items: items.clear(), ("no usable item in its list of 0",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_teach_is_refused_in_one_line(folder: Path, name: str) -> None:
    mutate, words = REFUSED[name]
    items = good_items()
    mutate(items)
    path = write(folder, items)
    with pytest.raises(ValueError) as error:
        judged(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 700
    assert all(word in message for word in words), message
    assert message.count(str(path)) == 1, message


@pytest.mark.parametrize("shape", ["[x, y, width, height]", "opposite corners", "flat list", "objects"])
def test_boxes_of_other_forms_are_malformed_and_say_what_is_needed(folder: Path, shape: str) -> None:
    forms: dict[str, tuple[Any, str]] = {
        "[x, y, width, height]": ([4, 6, 80, 30], "if it is [x, y, width, height] or [left, top, right, bottom]"),
        "opposite corners": ([[4, 6], [84, 36]], "if these are opposite corners of a box, write all four"),
        "flat list": ([4, 6, 84, 6, 84, 36, 4, 36], "write the flat list as pairs"),
        "objects": ([{"x": 4, "y": 6}] * 4, "expected at least three [x, y] pairs"),
    }
    items = good_items()
    each_line(items, lambda a: a.update(polygon=forms[shape][0]))
    with pytest.raises(ValueError) as error:
        load_records(write(folder, items))
    assert forms[shape][1] in str(error.value) and "8 of 8 items have a fault" in str(error.value)


def test_a_good_file_passes_and_a_few_faults_are_counted(folder: Path) -> None:
    assert judged(write(folder, good_items())) == ""
    items = good_items() + good_items() + good_items()
    items[1]["annotations"][0]["polygon"] = box(400, 10, 460, 30)
    items[2]["annotations"][0]["polygon"] = box(100, 10, 190, 30)
    items[3]["annotations"][0]["polygon"] = box(40, 10, 100, 30)[::-1]
    seen = judged(write(folder, items))
    assert seen.startswith("in 51 lines whose pictures' sizes were read ")
    for kind in (WHOLLY_OUTSIDE, PARTLY_OUTSIDE, "corners run counter-clockwise"):
        assert f"polygons: {kind}: 1, first " in seen
    with pytest.raises(ValueError, match=r"50 of 51 lines can be used; .*data.max_faulty_lines=0.01 is the greatest"):
        judged(write(folder, items), 0.01)


def test_what_one_limit_takes(folder: Path) -> None:
    """With 1 everything passes that can be drawn at all."""
    swapped, doubtful = good_items(), good_items()
    each_line(swapped, as_sides)
    doubled(doubtful)
    assert "mostly outside" in judged(write(folder, swapped), 1.0) and judged(write(folder, doubtful), 1.0) == ""
    shares = good_items()
    moved(lambda x, y: [x / WIDTH, y / HEIGHT])(shares)
    with pytest.raises(ValueError, match="0 of 17 lines"):
        judged(write(folder, shares), 1.0)


@pytest.mark.parametrize(("side", "refused"), [(512, True), (128, True), (104, False)])
def test_percent_are_told_from_pixels_by_the_size_of_the_pictures(tmp_path: Path, side: int, refused: bool) -> None:
    """In square pictures, where x and y cannot be told apart either."""
    for n in range(8):
        Image.new("L", (side, side)).save(tmp_path / f"{n}.png")
    items = good_items(side, side)
    assert judged(write(tmp_path, items)) == ""
    moved(lambda x, y: [100 * x / side, 100 * y / side])(items)
    if refused:
        with pytest.raises(ValueError, match="look like percent"):
            judged(write(tmp_path, items))
    else:
        assert judged(write(tmp_path, items)) == ""
    items = good_items(side, side)
    moved(lambda x, y: [y, x])(items)
    with pytest.raises(ValueError, match="0 of 17 lines can be used; x and y look swapped"):
        judged(write(tmp_path, items))


def test_boxes_outside_of_wide_pictures_say_that_x_and_y_are_swapped(tmp_path: Path) -> None:
    for n in range(8):
        Image.new("L", (400, 90)).save(tmp_path / f"{n}.png")
    items = good_items(400, 90)
    moved(lambda x, y: [y, x])(items)
    with pytest.raises(ValueError, match=r"boxes lie .*; most of them lie inside with x and y swapped \(polygons: "):
        judged(write(tmp_path, items))


def test_small_boxes_in_a_corner_are_no_percent_and_vertical_signs_are_not_turned(folder: Path) -> None:
    items = good_items()
    moved(lambda x, y: [x / 4, y / 4])(items)
    assert judged(write(folder, items)) == ""
    for n, item in enumerate(good_items()):
        items[n] = item
        item["annotations"] = [{"polygon": box(10 + n, 5, 30 + n, 110), "text": "居酒屋", "language": "Japanese"}]
    assert judged(write(folder, items)) == ""


def test_a_sample_of_the_pictures_is_looked_at_and_missing_ones_are_not_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.data.judgement.PROBED_PICTURES", 4)
    opened: list[str] = []
    header = ImageHeader("PNG", (HEIGHT, WIDTH), 1)
    monkeypatch.setattr("distill.data.judgement._header_of", lambda record: opened.append(record.name) or header)
    items = good_items()
    moved(lambda x, y: [x + 2 * WIDTH, y])(items)
    with pytest.raises(ValueError, match="0 of 17 lines"):
        judged(write(folder, items))
    assert sorted(opened) == ["0.png", "2.png", "5.png", "7.png"] and PROBED_PICTURES == 200
    monkeypatch.setattr("distill.data.judgement._header_of", lambda record: None)
    assert judged(write(folder, items)) == ""


def test_every_file_is_judged_by_itself(folder: Path) -> None:
    bad = good_items()
    renamed(bad)
    good, bad_path = write(folder, good_items() * 20, "good.json"), write(folder, bad, "bad.json")
    records, report = load_records([good, bad_path])
    with pytest.raises(ValueError, match=r"bad.json: no item has the field 'annotations'"):
        judge_records(records, report, DatasetConfig(resolution=64), 0.05, FONTS)


def test_where_a_box_lies() -> None:
    places = {
        "": [box(0, 0, 160, 120), box(-1, -1, 161, 121)],
        PARTLY_OUTSIDE: [box(100, 10, 200, 40), box(-9, 10, 50, 40)],
        MOSTLY_OUTSIDE: [box(150, 10, 200, 40), box(-30, -30, 20, 20)],
        WHOLLY_OUTSIDE: [box(161, 10, 200, 40), box(-30, 10, -1.5, 40)],
    }
    for place, boxes in places.items():
        assert [outside(np.array(b, np.float32), (WIDTH, HEIGHT)) for b in boxes] == [place] * 2
    assert is_clockwise(np.array(box(0, 0, 9, 9))) and not is_clockwise(np.array(box(0, 0, 9, 9)[::-1]))


def test_every_count_of_the_check_has_a_limit_or_says_why_it_has_none() -> None:
    described = {"source", "error", "problem", "items", "usable", "checked", "readable", "faulty", "lines", "exif"}
    by_reason = {"left_out", "polygons", "undrawable", "notes"}  # their reasons have entries of their own
    assert {field.name for field in fields(SourceCheck)} - described - by_reason <= set(LIMITS)
    for kind in (PARTLY_OUTSIDE, MOSTLY_OUTSIDE, WHOLLY_OUTSIDE):
        assert f"polygons: {kind}" in LIMITS


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["shares", "percent", "annotations renamed", "doubled"])
def test_the_check_and_the_cache_builder_refuse_it(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mutate, words = REFUSED[name]
    items = good_items()
    mutate(items)
    path = write(folder, items)
    assert check_dataset.main([str(path), "resolution=64", "--workers", "0", "--out", str(tmp_path / "r.json")]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"not usable: {path}: ") and all(word in last for word in words), last
    store = tmp_path / "x.lmdb"
    assert build_lmdb_cache.main([str(path), "resolution=64", "--workers", "0", "--out", str(store)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ") and all(word in line for word in words), line
    assert not store.exists() and not list(tmp_path.glob("x.lmdb*"))


@pytest.mark.heavy
def test_the_check_counts_what_the_run_counts(folder: Path) -> None:
    items = good_items()
    for annotation in items[0]["annotations"]:
        del annotation["language"]
    items[1]["annotations"][0]["polygon"] = box(400, 10, 460, 30)
    path = write(folder, items)
    found = check_source(path, DatasetConfig(resolution=64))
    assert found.notes["lines: language missing (inferred from the script)"].count == 3
    assert found.polygons[WHOLLY_OUTSIDE].count == 1
    (why,) = reasons_unusable(found, 1.0, 1.0)
    with pytest.raises(ValueError) as error:
        judged(path)
    assert str(error.value) == why
    assert reasons_unusable(check_source(path, DatasetConfig(resolution=64), max_faulty_lines=0.1), 1.0, 1.0) == []


@pytest.mark.process
@pytest.mark.parametrize("name", ["percent", "annotations renamed"])
def test_training_refuses_it(folder: Path, tmp_path: Path, name: str) -> None:
    runs = TrainingFolder.create(tmp_path, 2)
    mutate, words = REFUSED[name]
    items = good_items()
    mutate(items)
    argv = runs.argv("refused", "train.max_steps=1", f"data.sources=[{write(folder, items)}]")
    assert_one_error(run_ranks(1, train_command, argv), *words)
    assert not runs.run_dir("refused").exists()
