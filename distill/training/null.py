"""What ranks other than 0 hold in place of the tracker and the checkpoint writer: the same calls, without effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from distill.runtime.watchdog import Phase

Heartbeat = Callable[[Phase], None]
"""Tells the watchdog that the run makes progress, and what it does next."""


class RunTracker(Protocol):
    """What the training uses of `distill.tracking.tracker.Tracker`."""

    @property
    def run_id(self) -> str: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def finish(self, status: str = ..., timeout: float = ...) -> object: ...


class SnapshotWriter(Protocol):
    """What the training uses of `distill.checkpoint.writer.CheckpointWriter`."""

    failures: int
    last_failure: str

    def submit(
        self, step: int, write: Callable[[Path], None], note: str = "", best_score: float | None = None
    ) -> None: ...

    def wait(self) -> None: ...


class NullTracker:
    """Tracks nothing."""

    run_id = ""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def artifact(self, path: Path, folder: str = "") -> None:
        pass

    def finish(self, status: str = "", timeout: float = 0.0) -> None:
        pass


class NullWriter:
    """Writes nothing."""

    failures, last_failure = 0, ""

    def submit(self, step: int, write: Callable[[Path], None], note: str = "", best_score: float | None = None) -> None:
        pass

    def wait(self) -> None:
        pass


class NullWatchdog:
    """Watches nothing."""

    def beat(self, phase: Phase = "training") -> None:
        pass

    def finish(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}
