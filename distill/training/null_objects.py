"""Null objects: ranks other than 0 hold them in place of the tracker and the checkpoint writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.checkpoint.writer import CheckpointWriter
from distill.runtime.watchdog import Phase, Watchdog
from distill.tracking.tracker import Tracker

Heartbeat = Callable[[Phase], None]
"""Tells the watchdog that the run makes progress, and what it does next."""


class NullTracker:
    """Tracks nothing."""

    run_id = page = ""

    def notify(self, event: str, message: str, **facts: Any) -> None:
        pass

    def note(self, note: Mapping[str, Any]) -> None:
        pass

    def record_params(self) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def artifact(self, path: Path, folder: str = "", image: str = "", step: int = 0) -> None:
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

    def heartbeat(self, phase: Phase = "training") -> None:
        pass

    def finish(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}


RunTracker = Tracker | NullTracker
RunWriter = CheckpointWriter | NullWriter
RunWatchdog = Watchdog | NullWatchdog
