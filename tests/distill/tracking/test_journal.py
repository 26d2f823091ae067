"""Journals: whole lines only, whatever the process or the disk does."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.tracking import journal as journal_module
from distill.tracking.journal import Journal
from distill.tracking.tracker import Tracker
from tests.helpers.run_records import read_metrics


def test_journal_reads_on_from_an_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    for i in range(5):
        journal.append({"i": i, "text": "招牌"})
    records, offset, broken = journal.read(limit=3)
    assert [r["i"] for r in records] == [0, 1, 2] and records[0]["text"] == "招牌" and broken == 0
    records, offset, _ = journal.read(offset)
    assert [r["i"] for r in records] == [3, 4]
    assert journal.read(offset) == ([], offset, 0)


def test_a_line_cut_by_death_is_counted_and_the_next_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"i": 1}\n{"i": 2')
    unread = Journal(path)  # a new process
    unread.append({"i": 3})
    records, _, broken = unread.read()
    assert records == [{"i": 1}, {"i": 3}] and broken == 1


def test_a_line_that_another_process_left_half_written_spoils_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"i": 1})
    with journal.path.open("a") as file:  # killed while this process goes on
        file.write('{"i": ')
    journal.append({"i": 2})
    records, _, broken = journal.read()
    assert records == [{"i": 1}, {"i": 2}] and broken == 1


def test_a_line_being_written_is_left_for_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"i": 1})
    with journal.path.open("a") as file:
        file.write('{"i": ')
    records, offset, broken = journal.read()
    assert records == [{"i": 1}] and broken == 0
    with journal.path.open("a") as file:
        file.write("2}\n")
    assert journal.read(offset)[0] == [{"i": 2}]


def test_a_full_disk_loses_nothing_and_is_said_once(tmp_path: Path) -> None:
    """/dev/full answers every write with the kernel's own 'no space left'."""
    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    journal = Journal(path, said.append)
    for i in range(250):
        journal.append({"i": i})
    assert len(said) == 1 and "metrics.jsonl cannot be written (No space left on device)" in said[0]
    assert journal.count() == 250 and journal.flush() == 250
    path.unlink()
    for i in range(250, 253):
        journal.append({"i": i})
    assert len(said) == 2 and "can be written again" in said[1]
    assert journal.flush() == 0 and journal.count() == 253
    assert [record["i"] for record in journal.all()] == list(range(253))


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The kernel cuts every write of this process there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_for_which_there_is_half_the_room_is_written_whole_later(tmp_path: Path) -> None:
    said: list[str] = []
    journal = Journal(tmp_path / "j.jsonl", said.append)
    journal.append({"i": 0})
    with files_at_most(15):
        journal.append({"i": 1})
        assert journal.path.read_text() == '{"i": 0}\n'
        journal.append({"i": 2})
    journal.append({"i": 3})
    records, _, broken = journal.read()
    assert [record["i"] for record in records] == [0, 1, 2, 3] and broken == 0 and len(said) == 2


def test_a_torn_line_and_a_full_disk_together(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"i": 0}\n{"i"')
    journal = Journal(path, lambda line: None)
    with files_at_most(path.stat().st_size + 3):
        journal.append({"i": 1})
    journal.append({"i": 2})
    records, _, broken = journal.read()
    assert [record["i"] for record in records] == [0, 1, 2] and broken == 1


def test_memory_for_waiting_lines_is_bounded_and_what_is_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MOST_WAITING", 3)
    said: list[str] = []
    path = tmp_path / "j.jsonl"
    path.symlink_to("/dev/full")
    journal = Journal(path, said.append)
    for i in range(5):
        journal.append({"i": i})
    path.unlink()
    journal.flush()
    assert journal.lost == 2 and [record["i"] for record in journal.all()] == [2, 3, 4]
    assert said[1].endswith("; 2 lines were lost")


def test_a_run_goes_on_in_a_folder_that_became_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = Tracker(tmp_path / "run", SimpleNamespace(enabled=False, uri="", experiment="e"), {}, say=said.append)
    tracker.log({"train/loss": 1.0}, 1)
    original = os.open

    def read_only(path: object, flags: int, *args: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, flags, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        tracker.log({"train/loss": 2.0}, 2)
        tracker.log({"train/loss": 3.0}, 3)
    assert len(said) == 1 and "Read-only file system" in said[0]
    report = tracker.finish()
    assert "unwritten" not in report.counts
    assert [record["train/loss"] for record in read_metrics(tmp_path / "run")] == [1.0, 2.0, 3.0]


def test_lines_that_never_found_room_are_counted_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    tracker = Tracker(tmp_path / "run", SimpleNamespace(enabled=False, uri="", experiment="e"), {}, say=said.append)
    tracker.log({"train/loss": 1.0}, 1)
    assert tracker.finish().counts["unwritten"] == 1 and "are lost" in said[-1]


def test_a_repeated_step_is_recorded_once_and_said_once(tmp_path: Path) -> None:
    options = SimpleNamespace(enabled=False, uri="", experiment="e")
    first = Tracker(tmp_path / "run", options, {})
    for step in (10, 20, 30):
        first.log({"train/loss": float(step)}, step)
    said: list[str] = []
    second = Tracker(tmp_path / "run", options, {}, say=said.append)
    for step in (20, 30, 40):
        second.log({"train/loss": float(step), "new": 1.0}, step)
    report = second.finish()
    assert report.counts["repeated"] == 2
    assert len(said) == 1 and "steps up to 30" in said[0] and "not recorded again" in said[0]
    steps = {name: [r["step"] for r in read_metrics(tmp_path / "run") if name in r] for name in ("train/loss", "new")}
    assert steps == {"train/loss": [10, 20, 30, 40], "new": [20, 30, 40]}
    added = Tracker(tmp_path / "run", options, None)  # an evaluation, of an older checkpoint, twice
    added.log({"evaluation/ned": 0.5}, 20)
    added.log({"evaluation/ned": 0.6}, 20)
    added.finish()
    assert [r["evaluation/ned"] for r in read_metrics(tmp_path / "run")[-2:]] == [0.5, 0.6]
    assert len((tmp_path / "run" / "params.jsonl").read_text().splitlines()) == 2
