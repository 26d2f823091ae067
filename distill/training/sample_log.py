"""Which samples every global batch was made of (`log.samples`): shows that none was repeated or left out.

    samples-R.jsonl   of rank R: {"session", "world", "after"} at each start, {"batch", "samples": [[epoch, index]]}

A batch's line is written before a checkpoint can hold the batch, so what a run was made of can always be told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from distill.data.batch_sampler import SampleKey
from distill.tracking.journal import Journal
from distill.training.engine import Engine

NAME = "samples-{}.jsonl"


class SampleLog(Protocol):
    def add(self, keys: Sequence[SampleKey]) -> None:
        """Adds a micro-batch."""

    def end_batch(self, batch: int) -> None:
        """Writes the samples since the last call; `batch` counts from 1."""


class NullSampleLog:
    """Records nothing: log.samples=false."""

    def add(self, keys: Sequence[SampleKey]) -> None:
        pass

    def end_batch(self, batch: int) -> None:
        pass


class JournalSampleLog:
    """Records this rank's share of each global batch."""

    def __init__(self, run_dir: Path, engine: Engine, after: int) -> None:
        """after: global batches that were done before this start. Collective."""
        self._journal = Journal(run_dir / NAME.format(engine.world.rank))
        session = engine.gather(time.time_ns())[0]
        self._journal.append({"session": session, "world": engine.world.size, "after": after})
        self._samples: list[list[int]] = []

    def add(self, keys: Sequence[SampleKey]) -> None:
        self._samples.extend([key.epoch, key.index] for key in keys)

    def end_batch(self, batch: int) -> None:
        self._journal.append({"batch": batch, "samples": self._samples})
        self._samples = []
