"""Packed records: nothing is lost, and three million of them fit."""

from __future__ import annotations

import gc
import json
import os
import pickle
import tracemalloc
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from anytext2.core.batch import Record, TextLine
from anytext2.data.annotations import load_records
from anytext2.data.records import RecordPacker, Records

ITEMS = 10_000
ROOT = Path("/somewhere/imgs")
TEXTS = ("OPEN", "药房", "", " ", "مرحبا", "👩‍👩‍👧", "a\0b\n", "\ud800 half", "x" * 70_000)


def _polygon(rng: np.random.Generator, corners: int = 4) -> np.ndarray:
    return rng.normal(0, 1e3, (corners, 2)).astype(np.float32)


def _records() -> list[Record]:
    rng = np.random.default_rng(0)
    odd = np.array([[np.nan, -0.0], [np.inf, 1e-45], [3.4e38, 0.1]], np.float32)
    found = [Record(ROOT / "bare.png", "bare.png", "", ())]
    for number, text in enumerate(TEXTS):
        lines = tuple(
            TextLine(t, _polygon(rng, 3 + k), "Latin" if k else text[:9], (k, 255, 0) if k % 2 else None)
            for k, t in enumerate(TEXTS[:number])
        )
        name = f"{number}/{text[:20]}.png".replace("\0", "")
        found.append(Record(ROOT / name, name, text, lines, (odd, _polygon(rng))[: number % 3]))
    return found


def _pack(sources: Sequence[Iterable[Record]]) -> Records:
    packer = RecordPacker()
    for records in sources:
        for r in records:
            packer.add(r.name, r.caption, r.lines, r.ignored_polygons)
        packer.end_source(ROOT)
    return packer.records()


def _assert_equal(found: Record, expected: Record) -> None:
    assert (found.image_path, found.name, found.caption) == (expected.image_path, expected.name, expected.caption)
    for a, b in zip(found.lines, expected.lines, strict=True):
        assert (a.text, a.language, a.color) == (b.text, b.language, b.color)
    polygons = [[*(line.polygon for line in r.lines), *r.ignored_polygons] for r in (found, expected)]
    for p, q in zip(*polygons, strict=True):
        assert p.dtype == np.float32 and p.shape == q.shape and p.tobytes() == q.tobytes()


def test_records_come_back_bit_by_bit() -> None:
    expected = _records()
    found = _pack([expected])
    assert len(found) == len(expected)
    for number, record in enumerate(expected):
        _assert_equal(found[number], record)
        _assert_equal(found[number - len(expected)], record)
        assert found.name(number) == record.name


def test_a_record_owns_its_polygons() -> None:
    records = _pack([_records()])
    first = records[9].lines[0].polygon
    kept = first.copy()
    first += 1
    assert records[9].lines[0].polygon.tobytes() == kept.tobytes()


def test_sources_slices_and_views() -> None:
    all_of = _records()
    records = _pack([all_of[:3], [], all_of[3:]])
    assert [int(records.sources[i]) for i in (0, 2, 3, -1)] == [0, 0, 2, 2]
    assert records.sources.tolist() == [0] * 3 + [2] * 7 and records.sources.dtype == np.int32
    view = records.select(np.array([9, 0, 5, 5]))
    assert [r.name for r in view] == [all_of[i].name for i in (9, 0, 5, 5)]
    again = view[1:].select(np.array([1, 0]))
    assert [again.name(i) for i in (0, 1)] == [all_of[5].name, all_of[0].name] and again.sources.tolist() == [2, 0]
    assert np.shares_memory(again._data, records._data) and int(again.sources[0]) == 2
    assert len(records[20:]) == 0 and [r.name for r in records[::-4]] == [all_of[i].name for i in (9, 5, 1)]


def test_beyond_the_end() -> None:
    records = _pack([_records()])
    for index in (10, -11):
        with pytest.raises(IndexError, match="of 10"):
            records[index]
        with pytest.raises(IndexError):
            records.select(np.array([0, 10 if index == 10 else -1]))
    with pytest.raises(TypeError):
        records["1"]  # type: ignore[call-overload]
    empty = _pack([])
    assert len(empty) == 0 and list(empty) == [] and len(empty.select(np.array([], np.int64))) == 0


def test_cutting_keeps_the_beginning() -> None:
    packer, records = RecordPacker(), _records()
    for r in records:
        packer.add(r.name, r.caption, r.lines, r.ignored_polygons)
    packer.truncate(4)
    packer.add("last.png", "", (), ())
    packer.end_source(ROOT)
    found = packer.records()
    assert [r.name for r in found] == [*(r.name for r in records[:4]), "last.png"]
    _assert_equal(found[3], records[3])


@pytest.fixture(scope="module")
def annotation_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in AnyWord: three lines of four corners, a caption of 60 characters, fields that are not used."""
    path, rng = tmp_path_factory.mktemp("records") / "data.json", np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"data_list": [')
        for number in range(ITEMS):
            corners = rng.integers(0, 512, (3, 4, 2)).tolist()
            lines = [
                {
                    "polygon": c,
                    "text": "Coffee 咖啡",
                    "language": "Latin",
                    "color": [1, 2, 3],
                    "score": 0.25,
                    "pos": [0, 1],
                }
                for c in corners
            ]
            item = {"img_name": f"{number:09}.jpg", "caption": "word " * 12, "rec_score": 0.5, "annotations": lines}
            file.write(("," if number else "") + json.dumps(item))
        file.write('], "data_root": "imgs"}')
    return path


@pytest.fixture(scope="module")
def many(annotation_file: Path) -> Records:
    return load_records(annotation_file)[0]


@pytest.mark.heavy
def test_pickling_writes_what_is_in_view(many: Records) -> None:
    whole = pickle.dumps(many)
    assert len(whole) < many.nbytes + 2000
    view = pickle.loads(pickle.dumps(many.select(np.array([7, 9_999]))))
    assert len(pickle.dumps(view)) < 2000
    _assert_equal(view[1], many[9_999])
    _assert_equal(pickle.loads(whole)[5_432], many[5_432])


@pytest.mark.process
def test_three_million_records_fit(annotation_file: Path) -> None:
    tracemalloc.start()
    records, _ = load_records(annotation_file)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == ITEMS
    assert records.nbytes / ITEMS < 400, "bytes a record: 1.2 GB for three million"
    assert held < 1.2 * records.nbytes + 1e5, "nothing but the packed form stays"
    assert peak < 1.2 * records.nbytes + 4e6, "and little else was ever there"
    assert peak < annotation_file.stat().st_size


def _private_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such line")


def _growth(records: Sequence[Record]) -> int:
    """By how many bytes looking at all records makes a forked process' own memory grow."""

    def child(end: object) -> None:
        gc.disable()  # a collection writes to every object of the process, whatever they are
        assert all(record.name for record in records[:500])  # what looking itself needs is there now
        before = _private_bytes()
        seen = sum(len(record.lines) + len(record.name) for record in records)
        end.send((seen, _private_bytes() - before))  # type: ignore[attr-defined]
        os._exit(0)

    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    seen, growth = ours.recv()
    process.join()
    assert seen == len(records) * 16
    return int(growth)


def _both_growths(records: Records, end: Connection) -> None:
    end.send((_growth(records), _growth(list(records))))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="measures with Linux' smaps_rollup")
@pytest.mark.process
def test_forked_workers_share_the_records(many: Records) -> None:
    # in a new process, since this one's allocator holds what other tests left
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_both_growths, args=(many, theirs))
    process.start()
    packed, objects = ours.recv()
    process.join()
    assert packed < many.nbytes / 4, "a worker that reads everything copies next to nothing"
    assert objects > 4 * packed, "which objects do not achieve"
