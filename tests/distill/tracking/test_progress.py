"""The progress line: time left, a terminal's status line, progress.json."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from distill.tracking.progress import Occasion, Occasions, StatusLine, progress_line, read_progress, write_progress


@pytest.mark.parametrize(
    ("every", "at_end", "updates", "last", "left"),
    [
        (10, True, 0, 40, 4),
        (10, True, 10, 40, 3),
        (10, True, 0, 45, 5),  # the last one is at the end
        (10, False, 0, 45, 4),
        (0, False, 0, 45, 0),
        (0, True, 3, 45, 1),
        (2.5, True, 0, 10, 4),  # passes over the data
        (10, True, 45, 45, 0),
    ],
)
def test_occasions_that_are_left(every: float, at_end: bool, updates: int, last: int, left: int) -> None:
    assert Occasion(every, at_end).left(updates, last) == left


def test_the_time_left_counts_evaluations_and_checkpoints() -> None:
    occasions = Occasions({"evaluations": Occasion(10, True, [30.0, 50.0]), "checkpoints": Occasion(20, True)})
    assert occasions.time_left(20, 40, 2.0) == (20 * 2.0 + 2 * 40.0, "1 checkpoint")
    assert occasions.time_left(0, 40, 2.0)[1] == "2 checkpoints"
    assert occasions.metrics() == {"speed/evaluation_seconds": 40.0}
    with occasions.measured("checkpoints"):
        pass
    assert occasions.time_left(20, 40, 2.0)[1] == ""


def test_the_line_names_what_it_does_not_count() -> None:
    assert progress_line(5, 40, 0.1, 1e-3, 8.0, 60.0, "2 evaluations").endswith("ETA 01:00 + 2 evaluations")


def screen(text: str) -> list[str]:
    """What a terminal shows: a carriage return with an erasure begins the line anew."""
    return [line.rsplit("\r\x1b[K", 1)[-1] for line in text.split("\n")]


def test_a_status_line_stays_below_what_is_printed() -> None:
    stream = io.StringIO()
    status = StatusLine(stream)
    print("first", file=status)
    status.show("step 1")
    print("second", "half", file=status)
    status.show("step 2")
    status.show("step 3", now=False)  # too soon
    assert screen(stream.getvalue()) == ["first", "second half", "step 2"]
    status.close()
    print("last", file=status)
    assert screen(stream.getvalue()) == ["first", "second half", "step 2", "last", ""]


def test_progress_json_is_what_another_process_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_progress(tmp_path) == {}
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    write_progress(tmp_path, {"phase": "training", "update": 3})
    found = read_progress(tmp_path)
    assert (found["phase"], found["update"], found["slurm_job"]) == ("training", 3, "12") and found["pid"]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
    (tmp_path / "progress.json").write_text("{")
    assert read_progress(tmp_path) == {}
    write_progress(tmp_path / "nowhere", {})  # a full disk must not end a training
