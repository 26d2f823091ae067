"""Journals: files of JSON lines, the local record of a run that everything else is made from."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines that one process appends to, whole lines at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mend()

    def append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())

    def read(self, offset: int = 0, limit: int = 1000) -> tuple[list[dict[str, Any]], int, int]:
        """Up to `limit` whole lines from byte `offset` on: the records, the next offset, the number of broken lines."""
        records: list[dict[str, Any]] = []
        broken = 0
        if not self.path.exists():
            return records, offset, broken
        with self.path.open("rb") as file:
            file.seek(offset)
            for _ in range(limit):
                line = file.readline()
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                try:
                    records.append(json.loads(line))
                except ValueError:
                    broken += 1
        return records, offset, broken

    def _mend(self) -> None:
        """Ends a line that a killed process left half written, so that the next one begins on its own."""
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def metric_record(values: Mapping[str, float], step: int) -> dict[str, Any]:
    """A line of a metrics journal. JSON has no NaN: non-finite values become the strings 'nan', 'inf', '-inf'."""
    assert not {"time", "step"} & set(values), "reserved names"
    numbers = {name: float(value) for name, value in values.items()}
    return {"time": now(), "step": int(step)} | {n: v if math.isfinite(v) else str(v) for n, v in numbers.items()}


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All lines of metrics.jsonl, values as floats. After a resume a step may occur twice: the later line counts."""
    records, _, _ = Journal(run_dir / "metrics.jsonl").read(limit=sys.maxsize)
    return [{name: float(value) for name, value in record.items()} for record in records]


def now() -> float:
    """Seconds since 1970, to the millisecond: MLflow's resolution."""
    return round(time.time(), 3)
