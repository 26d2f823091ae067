"""What a run was made of, told from the lines that its killed and resumed starts left."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distill.data.batch_sampler import SampleKey
from distill.training.sample_log import JournalSampleLog
from tests.helpers.run_records import lineage


def start(folder: Path, rank: int, session: int, world: int, after: int) -> JournalSampleLog:
    engine: Any = SimpleNamespace(world=SimpleNamespace(rank=rank, size=world), gather=lambda _: [session])
    return JournalSampleLog(folder, engine, after)


def test_what_came_after_the_checkpoint_of_a_resume_does_not_count(tmp_path: Path) -> None:
    for rank in (0, 1):
        first = start(tmp_path, rank, session=100, world=2, after=0)
        for batch in (1, 2, 3):
            first.add([SampleKey(0, 2 * batch + rank)])
            if (batch, rank) != (3, 1):  # killed
                first.end_batch(batch)
    again = start(tmp_path, 0, session=200, world=1, after=2)
    again.add([SampleKey(0, 7)])
    again.add([SampleKey(0, 6)])
    again.end_batch(3)
    assert lineage(tmp_path) == {1: [(0, 2), (0, 3)], 2: [(0, 4), (0, 5)], 3: [(0, 6), (0, 7)]}
    start(tmp_path, 0, session=50, world=1, after=1)  # the clock was set back
    assert lineage(tmp_path) == {1: [(0, 2), (0, 3)]}


def test_a_line_that_was_cut_short_is_no_sample(tmp_path: Path) -> None:
    log = start(tmp_path, 0, session=1, world=1, after=0)
    log.add([SampleKey(0, 1)])
    log.end_batch(1)
    path = tmp_path / "samples-0.jsonl"
    path.write_text(path.read_text() + json.dumps({"batch": 2, "samples": [[0, 2]]})[:-4])
    assert lineage(tmp_path) == {1: [(0, 1)]}
