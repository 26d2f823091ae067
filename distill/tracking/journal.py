"""Journals: files of JSON lines, the local record of a run that everything else is made from."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anytext2.core.files import fsync

MOST_WAITING = 20_000
"""Lines kept in memory while a journal cannot be written: about 10 MB, days of training."""
_LINES_PER_CALL = 100  # a call must stay short, also right after the disk has room again


class Journal:
    """A file of JSON lines that is only appended to, whole lines at a time.

    A line that cannot be written (disk full, read-only, folder gone) waits in memory and is tried again, in order, with
    each later one; that is said once. Of more than `MOST_WAITING` the oldest are lost, and counted in `lost`.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self.path = path
        self.lost = 0
        self._say = say
        self._waiting: deque[bytes] = deque()
        self._failing = False
        self._lock = threading.Lock()
        self._torn = self._ends_torn()

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line. Raises nothing for what the disk does."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._waiting.append(line)
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.lost += 1
            self._write(_LINES_PER_CALL)

    def flush(self) -> int:
        """Tries to write all that waits; returns how many lines still do."""
        with self._lock:
            self._write(len(self._waiting))
            return len(self._waiting)

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        fsync(self.path)

    def read(self, offset: int = 0, limit: int = 1000) -> tuple[list[dict[str, Any]], int, int]:
        """Up to `limit` whole lines from byte `offset` on: the records, the next offset, the number of broken lines."""
        records: list[dict[str, Any]] = []
        broken = 0
        if not self.path.is_file():
            return records, offset, broken
        with self.path.open("rb") as file:
            file.seek(offset)
            for _ in range(limit):
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    records.append(record)
                elif line.strip():
                    broken += 1
        return records, offset, broken

    def all(self) -> Iterator[dict[str, Any]]:
        """Every record, a few at a time in memory."""
        offset, end = 0, -1
        while offset != end:
            end = offset
            records, offset, _ = self.read(offset)
            yield from records

    def size(self) -> int:
        """Bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def count(self, offset: int = 0) -> int:
        """Whole lines from byte `offset` on, those not yet written included."""
        lines = len(self._waiting)
        if self.path.is_file():
            with self.path.open("rb") as file:
                file.seek(offset)
                while block := file.read(1 << 20):
                    lines += block.count(b"\n")
        return lines

    def _write(self, most: int) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                for _ in range(min(most, len(self._waiting))):
                    self._put(descriptor, self._waiting[0])
                    self._waiting.popleft()
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._failing:
                self._failing = True
                reason = error.strerror or str(error)
                self._say(f"tracking: {self.path} cannot be written ({reason}); its lines wait in memory")
            return
        if self._failing and not self._waiting:
            self._failing = False
            missing = f"; {self.lost} lines were lost" if self.lost else ""
            self._say(f"tracking: {self.path} can be written again, and what had to wait is in it{missing}")

    def _put(self, descriptor: int, line: bytes) -> None:
        """Writes the whole line or, where there is no room for it, nothing."""
        line = b"\n" + line if self._torn else line
        before = os.fstat(descriptor).st_size
        written = os.write(descriptor, line)
        if written == len(line):
            self._torn = False
            return
        self._torn = True
        if os.fstat(descriptor).st_size == before + written:  # nobody else has appended meanwhile
            os.ftruncate(descriptor, before)
            self._torn = line.startswith(b"\n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _ends_torn(self) -> bool:
        """Whether a killed process left a line half written, so that the next one must begin with a line break."""
        if not self.path.is_file():  # nor is a device or a pipe ever read, which would not end
            return False
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) == 0:
                    return False
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:
            return False


def metric_record(values: Mapping[str, float], step: int) -> dict[str, Any]:
    """A line of a metrics journal. JSON has no NaN: non-finite values become the strings 'nan', 'inf', '-inf'."""
    assert not {"time", "step"} & set(values), "reserved names"
    numbers = {name: float(value) for name, value in values.items()}
    return {"time": now(), "step": int(step)} | {n: v if math.isfinite(v) else str(v) for n, v in numbers.items()}


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All lines of metrics.jsonl, values as floats. A run that was killed and resumed has each step once."""
    records, _, _ = Journal(run_dir / "metrics.jsonl").read(limit=sys.maxsize)
    return [{name: float(value) for name, value in record.items()} for record in records]


def now() -> float:
    """Seconds since 1970, to the millisecond: MLflow's resolution."""
    return round(time.time(), 3)
