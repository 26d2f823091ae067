"""7,000 broken annotations: each is a valid sample or is counted under a reason, and none takes long.

6,400 items in 64 files (800 in 8 in the quick run) and 600 whole files, all from fixed seeds; test_image_fuzz.py has
the image files.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anytext2.core.batch import Record, TextLine
from anytext2.data import json_stream
from anytext2.data.annotation_items import MAX_COORDINATE
from anytext2.data.annotations import LoadReport, load_records
from anytext2.data.dataset import AnyWordDataset
from tests.helpers.fuzzing import CONFIG, FONTS, SECONDS, outcome_of

FILES, ITEMS, WHOLE_FILES = 64, 100, 600

TEXTS = (
    "مرحبا بالعالم",
    "שלום",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\ud800",
    "ab\udfffc",
    "\u200b\u200b\u200b",
    "\u2800\u3164\uffa0",
    "e" + "\u0301" * 50,
    "a\nb\tc\r",
    "\0\x01\x7f",
    "*",
    ".",
    "|||||||||||||||||||||",
    "—" * 20,
    "欢迎光临",
    "가나다",
    "\U00012000\U0001f0a1",
    "\ufeff\u202ereversed",
    " " * 30 + "late",
    "𝔘𝔫𝔦",
    "ﷺ﷽",
)
LANGUAGES = ("Latin", "Chinese", "Chinese_tra", "Arabic", "Klingon", "", "_", "\udc80", "L" * 1000)
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, math.nan, math.inf, -math.inf, 10**400, "", "x", "\ud800", "1", [], [[]], {},
    {"a": 1}, [1, 2, 3], [None], [[1, 2]], ["ab", "cd", "ef"], "@HUGE@", [[[[[[]]]]]],
)  # fmt: skip


# Items


def _wrong(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(WRONG))


def _item(number: int) -> dict[str, Any]:
    box = [[4, 6], [58, 6], [58, 30], [4, 30]]
    lines = [
        {"polygon": [[x, y + 32 * k] for x, y in box], "text": text, "language": "Latin", "color": [9, 99, 199]}
        for k, text in enumerate(("Open", "shop 7"))
    ]
    return {"img_name": f"{number}.png", "caption": "a shop", "wm_score": 0.2, "annotations": lines}


def _polygon(rng: random.Random) -> list[Any]:
    size = rng.choice([0.0, 1e-3, 1, 30, 500, 1e4, 9e5, 1e6, 1e7, 1e30, 1e308, 10**300, 10**330])
    corners: list[Any] = [
        [rng.choice([-1, 1]) * (int(size) if size > 1e300 else rng.uniform(0, size)) for _ in range(2)]
        for _ in range(rng.choice([1, 2, 3, 4, 4, 4, 5, 12, 200]))
    ]
    kind = rng.randrange(8)
    if kind == 0:
        corners = [corners[0]] * len(corners)
    elif kind == 1:
        corners = [[c[0], corners[0][1]] for c in corners]
    elif kind == 2:
        corners[rng.randrange(len(corners))] = rng.choice([[1], [1, 2, 3], [1, "2"], [True, None], 7, [math.nan, 1]])
    elif kind == 3:
        corners[rng.randrange(len(corners))][rng.randrange(2)] = _wrong(rng)
    return corners


def _set_top(item: dict[str, Any], rng: random.Random) -> None:
    field, value = rng.choice(list(item)), _wrong(rng)
    if field == "img_name" and isinstance(value, str) and value.isalnum():
        value += item[field]  # so that names tell the items of a file apart
    item[field] = value


def _set_annotation(item: dict[str, Any], rng: random.Random) -> None:
    line = rng.choice(item["annotations"])
    line[rng.choice([*line, "valid"])] = _wrong(rng)


def _drop(item: dict[str, Any], rng: random.Random) -> None:
    target = rng.choice([item, *item["annotations"]])
    del target[rng.choice(list(target))]


def _move(item: dict[str, Any], rng: random.Random) -> None:
    rng.choice(item["annotations"])["polygon"] = _polygon(rng)


def _rewrite(item: dict[str, Any], rng: random.Random) -> None:
    line = rng.choice(item["annotations"])
    line["text"] = rng.choice(TEXTS)
    if rng.random() < 0.5:
        line["language"] = rng.choice(LANGUAGES)


def _rename(item: dict[str, Any], rng: random.Random) -> None:
    name = item["img_name"]
    item["img_name"] = rng.choice(
        ["/" + name, "../" + name, "../" * 9 + name, "a/../../" + name, "./" + name, name + "\0", "absent" + name,
         name + "/x", "n" * 5000 + name, "é" + name, "\udcff" + name, "..", "//", name + "/.."]
    )  # fmt: skip


def _recaption(item: dict[str, Any], rng: random.Random) -> None:
    item["caption"] = rng.choice([*TEXTS, "* " * 300, "many. " * 500, "." * 400, "word " * 2000])


def _crowd(item: dict[str, Any], rng: random.Random) -> None:
    item["annotations"] *= rng.randint(2, 8)
    item["annotations"].append(_wrong(rng))


MUTATIONS: tuple[Callable[[dict[str, Any], random.Random], None], ...] = (
    *(_set_top, _set_annotation, _drop, _crowd, _rename, _recaption),
    *(_move, _rewrite) * 3,
)


def _mutated(number: int, rng: random.Random) -> Any:
    if rng.random() < 0.03:
        return _wrong(rng)
    item = _item(number)
    for mutate in rng.sample(MUTATIONS, rng.randint(1, 3)):
        try:
            mutate(item, rng)
        except (KeyError, TypeError, IndexError, AttributeError):
            break  # an earlier mutation took away what this one changes
    if rng.random() < 0.0005:
        item["annotations"] = [{**_item(0)["annotations"][0], "text": "long" * 25_000}]
    return item


def _as_json(content: Any, ascii_only: bool) -> str:
    return json.dumps(content, ensure_ascii=ascii_only).replace('"@HUGE@"', "9" * 5000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures 0.png, 1.png, ... of different sizes."""
    path, rng = tmp_path_factory.mktemp("fuzz"), np.random.default_rng(0)
    for number in range(ITEMS):
        size = [(64, 64), (1, 1), (33, 64), (200, 3)][0 if number % 4 else number // 4 % 4]
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / f"{number}.png")
    return path


def _assert_accounted(items: list[Any], records: list[Record], report: LoadReport) -> None:
    """Every item is a record or counted; every annotation of a record is a line or counted."""
    lost = sum(count for reason, count in report.skipped.items() if reason.startswith("pictures: "))
    assert report.pictures + lost == len(items) and len(records) == report.pictures
    by_name = {
        item["img_name"]: item for item in items if isinstance(item, dict) and isinstance(item.get("img_name"), str)
    }
    annotations = sum(len(by_name[record.name].get("annotations") or []) for record in records)
    unused = sum(count for reason, count in report.skipped.items() if reason.startswith("lines: "))
    assert report.lines + unused == annotations
    assert report.lines == sum(len(record.lines) for record in records)
    ignored = sum(count for reason, count in report.skipped.items() if reason.endswith("(ignored by the loss)"))
    assert ignored == sum(len(record.ignored_polygons) for record in records)
    for record in records:
        for polygon in (*(line.polygon for line in record.lines), *record.ignored_polygons):
            assert polygon.dtype == np.float32 and np.abs(polygon).max() <= MAX_COORDINATE


@pytest.mark.heavy
@pytest.mark.parametrize("files", [8, pytest.param(FILES, marks=pytest.mark.slow)])
def test_mutated_items(folder: Path, files: int) -> None:
    rng, path = random.Random(1), folder / "data.json"
    skipped: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for number in range(files):
        items = [_mutated(n, rng) for n in range(ITEMS)]
        text = _as_json({"data_root": ".", "data_list": items}, ascii_only=True)
        path.write_text(text, encoding="utf-8")
        records, report = load_records(path, max_faulty=1.0)
        _assert_accounted(items, list(records), report)
        str(report).encode("utf-8")
        skipped.update(report.skipped)
        dataset = AnyWordDataset(records, CONFIG, number, FONTS)
        outcomes.update(outcome_of(dataset, index, number) for index in range(len(dataset)))
    assert outcomes[""] > files * ITEMS // 2 and set(outcomes) <= {"", "image missing", "image corrupt"}
    assert {
        "pictures: not an object",
        "pictures: name outside data_root",
        "pictures: faulty img_name",
        "pictures: faulty annotations",
        "lines: not an object",
        "lines: faulty polygon",
        "lines: polygon with an area below one pixel",
        "lines: text with unpaired surrogates (ignored by the loss)",
        "lines: faulty language (ignored by the loss)",
    } <= set(skipped)


def _mutated_bytes(rng: random.Random) -> bytes:
    items = [_item(n) if rng.random() < 0.7 else _mutated(n, rng) for n in range(3)]
    fields = [
        ("data_root", "."),
        ("data_list", items),
        ("data_list" if rng.random() < 0.1 else "extra", [1, {"a": []}]),
    ]
    rng.shuffle(fields)
    text = "{" + ", ".join(f'"{name}": {_as_json(value, True)}' for name, value in fields) + "}"
    content = bytearray(text.encode())
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        at = rng.randrange(len(content))
        kind = rng.randrange(6)
        if kind == 0:
            del content[at:]
            break
        if kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at : at + rng.randint(1, 40)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randint(1, 200)]
        elif kind == 4:
            content[at:at] = rng.choice([b"[", b"{", b'"', b"\\", b"\0", b"\xff", b"[" * 5000, b'{"a":' * 3000, b"\n"])
        else:
            content[:0] = rng.choice([b"\xef\xbb\xbf", b" \n", b"\xff\xfe"])
    return bytes(content) or b" "


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8-sig"), parse_int=float)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.heavy
def test_mutated_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path = random.Random(2), folder / "file.json"
    loaded = refused = 0
    for number in range(WHOLE_FILES):
        monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", rng.choice([16, 100, 1 << 18]))
        content = _mutated_bytes(rng)
        path.write_bytes(content)
        start = time.process_time()
        try:
            records, report = load_records(path, max_faulty=1.0)
        except ValueError as error:
            message = str(error)
            assert message.startswith(str(path)) and "\n" not in message
            assert not _is_json(content) or not ("not JSON" in message or "cannot read" in message), message
            refused += 1
        else:
            assert _is_json(content)
            dataset = AnyWordDataset(records, CONFIG, number, FONTS)
            outcomes = {outcome_of(dataset, index, 0) for index in range(report.pictures)}
            assert outcomes <= {"", "image missing", "image corrupt"}
            loaded += 1
        assert time.process_time() - start < SECONDS
    assert loaded > 100 and refused > 200


@pytest.mark.parametrize(
    ("text", "polygon"),
    [
        ("\u200b\u200b\u200b", [(30, 2), (34, 2), (34, 60), (30, 60)]),  # no ink and no width, in a tall box
        ("Open", [(-9e5, 10), (9e5, 10), (9e5, 6e5), (-9e5, 6e5)]),  # letters as high as ten thousand pictures
        ("Open", [(-1e6, -1e6), (-9e5, -1e6), (-9e5, -9e5)]),
        ("\u2800", [(-50, -60), (110, -60), (110, 120), (-50, 120)]),
    ],
)
def test_lines_that_cannot_be_drawn_as_they_are(folder: Path, text: str, polygon: list[tuple[float, float]]) -> None:
    line = TextLine(text, np.array(polygon, np.float32), "Latin", None)
    dataset = AnyWordDataset([Record(folder / "0.png", "0.png", "", (line,))], CONFIG, 0, FONTS)
    assert [outcome_of(dataset, 0, epoch) for epoch in range(4)] == [""] * 4
