"""Journals: append-only files of JSON lines. They are the local record of a run; MLflow is filled from them."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

MOST_WAITING = 20_000
"""Lines kept in memory while a journal cannot be written: about 10 MB, days of training."""
_LINES_PER_CALL = 100  # a call must stay short, also right after the disk has room again


class Journal:
    """A file of JSON lines. Only whole lines are appended.

    A line that cannot be written (disk full, read-only, folder gone) waits in memory, and later calls write it in
    order. The first failure is said once. Beyond `MOST_WAITING` lines the oldest are dropped and counted in `lost`.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self.path, self.lost = path, 0
        self._say = say
        self._waiting: deque[bytes] = deque()
        self._failing = False
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line. Never raises for a disk fault."""
        self._waiting.append(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self.flush(_LINES_PER_CALL)

    def flush(self, most: int = MOST_WAITING) -> int:
        """Writes up to `most` waiting lines. Returns how many still wait."""
        with self._lock:
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.lost += 1
            try:
                self._write(most)
            except OSError as error:
                if not self._failing:
                    reason = error.strerror or str(error)
                    self._say(f"tracking: {self.path} cannot be written ({reason}); its lines wait in memory")
                self._failing = True
            if self._failing and not self._waiting:
                self._failing = False
                missing = f"; {self.lost} lines were lost" if self.lost else ""
                self._say(f"tracking: {self.path} can be written again, and what had to wait is in it{missing}")
            return len(self._waiting)

    def _write(self, most: int) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            for _ in range(min(most, len(self._waiting))):
                _put(descriptor, self._waiting[0])
                self._waiting.popleft()
        finally:
            os.close(descriptor)

    def read(self, offset: int = 0, limit: int = 1000) -> tuple[list[dict[str, Any]], int, int]:
        """Reads up to `limit` whole lines from byte `offset` on: the records, the next offset, the number of broken
        lines. An offset beyond the end starts again at 0: the file was cut or replaced."""
        lines = list(islice(self._lines(offset), limit))
        records = [record for _, line in lines if (record := _parse(line)) is not None]
        broken = sum(bool(line.strip()) for _, line in lines) - len(records)
        return records, lines[-1][0] if lines else offset, broken

    def all(self) -> Iterator[dict[str, Any]]:
        """Every record, one at a time in memory."""
        return (record for _, line in self._lines() if (record := _parse(line)) is not None)

    def last(self) -> dict[str, Any]:
        """The last record; empty where there is none."""
        return next(iter(deque(self.all(), maxlen=1)), {})

    def count(self, offset: int = 0) -> int:
        """The number of lines from byte `offset` on, those that wait in memory included."""
        return len(self._waiting) + sum(1 for _ in self._lines(offset))

    def _lines(self, offset: int = 0) -> Iterator[tuple[int, bytes]]:
        """Whole lines from byte `offset` on, each after the offset of its end."""
        if not self.path.is_file():  # a device or a pipe is never read: that would not end
            return
        with self.path.open("rb") as file:
            end = file.seek(offset if offset <= os.fstat(file.fileno()).st_size else 0)
            while (line := file.readline()).endswith(b"\n"):
                yield (end := end + len(line)), line


def _put(descriptor: int, line: bytes) -> None:
    """Writes the whole line or, where there is no room for it, nothing."""
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) != b"\n":  # a killed process left a line half written
        line = b"\n" + line
    written = os.write(descriptor, line)
    if written < len(line):
        if os.fstat(descriptor).st_size == end + written:  # nobody else has appended meanwhile
            os.ftruncate(descriptor, end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def metric_record(values: Mapping[str, float], step: int) -> dict[str, Any]:
    """A line of a metrics journal. JSON has no NaN: non-finite values become the strings 'nan', 'inf', '-inf'."""
    assert not {"time", "step"} & set(values), "reserved names"
    numbers = {name: float(value) for name, value in values.items()}
    return {"time": now(), "step": int(step)} | {n: v if math.isfinite(v) else str(v) for n, v in numbers.items()}


def now() -> float:
    """Seconds since 1970, to the millisecond: MLflow's resolution."""
    return round(time.time(), 3)


def one_line(error: Exception) -> str:
    """What an error says, as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
