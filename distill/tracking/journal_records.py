"""One line of each journal as what MLflow is sent of it. Any error means that the line is malformed."""

from __future__ import annotations

import re
from typing import Any

Record = dict[str, Any]


def params(record: Record) -> dict[str, str]:
    return {str(name): str(value) for name, value in record["params"].items()}


def status(record: Record) -> tuple[str, int]:
    if record["status"] not in ("RUNNING", "FINISHED", "FAILED", "KILLED"):
        raise ValueError(record["status"])
    return record["status"], milliseconds(record["time"])


def note(record: Record) -> Record:
    for kind, keys in _NOTES.items():
        if kind in record and not set(keys) <= set(record[kind]):
            raise ValueError(kind)
    return {kind: record[kind] for kind in _NOTES if kind in record}


_NOTES = {
    "tags": (),
    "dataset": ("name", "digest", "source", "profile"),
    "model": ("checkpoint", "step", "path"),
    "evaluates": ("checkpoint", "step", "path"),
}
"""The kinds of notes, and the keys that each must have."""


def artifact(record: Record) -> tuple[str, str, str, int, int]:
    path, folder = str(record["path"]), str(record["folder"])
    if folder.startswith("/") or ".." in folder.split("/"):
        raise ValueError(folder)
    image = re.sub(r"[^\w\-./ ]", "_", str(record.get("image", "")), flags=re.ASCII)
    return path, folder, image, int(record.get("step", 0)), milliseconds(record.get("time", 0.0))


def milliseconds(seconds: float) -> int:
    return int(1000 * seconds)
