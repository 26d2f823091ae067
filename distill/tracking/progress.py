"""The progress of a run: one line for a person, how long the rest will take, and progress.json for other processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

PROGRESS_FILE = "progress.json"
REDRAW_SECONDS = 0.2
"""Shortest time between two redrawings of the line in a terminal."""


@dataclass
class Occasion:
    """Something that interrupts training at intervals. every: updates between two of them, 0: never; at_end: whether
    the last update has one in any case. seconds: how long each one took in this process."""

    every: float
    at_end: bool
    seconds: list[float] = field(default_factory=list)

    def left(self, updates: int, last: int) -> int:
        """How many come after update `updates`, up to update `last`."""
        if updates >= last:
            return 0
        regular = math.floor(last / self.every) - math.floor(updates / self.every) if self.every else 0
        return regular + (self.at_end and not (self.every and (last / self.every).is_integer()))

    @property
    def mean(self) -> float | None:
        """Seconds of one; None before the first."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else None


@dataclass
class Occasions:
    """What interrupts training, by what it is called: evaluations, checkpoints, previews."""

    kinds: dict[str, Occasion]

    @contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.kinds[kind].seconds.append(time.perf_counter() - began)

    def time_left(self, updates: int, last: int, seconds_per_update: float) -> tuple[float, str]:
        """Seconds until the end, and what is not in them because none has been measured yet: '3 evaluations'."""
        seconds, unknown = (last - updates) * seconds_per_update, []
        for name, kind in self.kinds.items():
            left = kind.left(updates, last)
            if kind.mean is not None:
                seconds += left * kind.mean
            elif left:
                unknown.append(f"{left} {name if left > 1 else name[:-1]}")
        return seconds, ", ".join(unknown)

    def metrics(self) -> dict[str, float]:
        """The mean duration of each kind that there was, by metric name."""
        return {f"speed/{n[:-1]}_seconds": kind.mean for n, kind in self.kinds.items() if kind.mean is not None}


def progress_line(
    step: int, max_steps: int, loss: float, lr: float, samples_per_s: float, eta: float | None, unknown: str = ""
) -> str:
    """One line about a running training; eta in seconds, None while it is not known yet; unknown: what it lacks."""
    width = len(str(max_steps))
    remaining = "--:--" if eta is None or not math.isfinite(eta) else duration(eta)
    return (
        f"step {step:>{width}}/{max_steps}  {100 * step / max(max_steps, 1):5.1f} %  loss {loss:.5f}  lr {lr:.2e}  "
        f"{samples_per_s:6.1f} samples/s  ETA {remaining}" + (f" + {unknown}" if unknown else "")
    )


def duration(seconds: float) -> str:
    """75 -> '01:15', 3725 -> '1:02:05', 90061 -> '1d 01:01:01'."""
    days, rest = divmod(max(round(seconds), 0), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{secs:02d}"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes:02d}:{secs:02d}"


class StatusLine:
    """Standard output of a terminal with one line that stays at the bottom; what is printed goes above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line, self._at_start, self._drawn = stream, "", True, 0.0
        self._lock = threading.RLock()

    def show(self, line: str, now: bool = True) -> None:
        """Replaces the line; now: false leaves it out where the last drawing is less than REDRAW_SECONDS ago."""
        with self._lock:
            if not now and time.monotonic() - self._drawn < REDRAW_SECONDS:
                return
            self._line, self._drawn = line, time.monotonic()
            if self._at_start:
                self._draw()

    def close(self) -> None:
        """Leaves the line where it is; the next text begins below it."""
        with self._lock:
            if self._line:
                self._stream.write("\n")
            self._line = ""
            self._stream.flush()

    def write(self, text: str) -> int:
        with self._lock:
            if self._line and self._at_start and text:
                self._stream.write("\r\x1b[K")
            self._stream.write(text)
            self._at_start = text.endswith("\n") if text else self._at_start
            if self._line and self._at_start:
                self._draw()
            return len(text)

    def _draw(self) -> None:
        columns = shutil.get_terminal_size().columns
        self._stream.write(f"\r\x1b[K{self._line[: columns - 1]}")
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install_status_line() -> StatusLine | None:
    """Lets standard output have a status line, where it is a terminal that can move its cursor."""
    if isinstance(sys.stdout, StatusLine) or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return None
    sys.stdout = status = StatusLine(sys.stdout)  # type: ignore[assignment]
    return status


def write_progress(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Replaces progress.json; without waiting for the disk, and without a word where that is full."""
    own = {"time": round(time.time(), 3), "pid": os.getpid(), "host": socket.gethostname()}
    if job := os.environ.get("SLURM_JOB_ID"):
        own["slurm_job"] = job
    file = run_dir / PROGRESS_FILE
    with suppress(OSError):
        hidden = file.with_name(f".{PROGRESS_FILE}.partial")
        hidden.write_text(json.dumps(own | dict(content), indent=1) + "\n", encoding="utf-8")
        os.replace(hidden, file)


def read_progress(run_dir: Path) -> dict[str, Any]:
    """What `write_progress` wrote last; empty where there is nothing or it is not readable."""
    with suppress(OSError, ValueError):
        content = json.loads((run_dir / PROGRESS_FILE).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}
