"""Annotation files for tests: a line with every field, lines at places of their own, the file and its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anytext2.data.annotations import load_records

SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9]]


def line(**changes: Any) -> dict[str, Any]:
    fields = {"polygon": SQUARE, "text": "OPEN", "language": "Latin", "color": [1, 2, 3], "valid": True, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def apart(*lines: Any) -> list[Any]:
    """The lines with their squares one below the other: the same box twice would be a fault."""
    moved = [[[x, y + 20 * n] for x, y in SQUARE] for n in range(len(lines))]
    return [
        {**line, "polygon": square} if isinstance(line, dict) and line.get("polygon") is SQUARE else line
        for line, square in zip(lines, moved, strict=True)
    ]


def write(folder: Path, items: list[Any], name: str = "data.json", **top: Any) -> Path:
    path = folder / name
    content = {"data_root": "imgs", "data_list": items, **top}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}), encoding="utf-8")
    return path


def load(folder: Path, items: list[Any], **options: Any) -> tuple[list[Any], Any]:
    records, report = load_records(write(folder, items), **{"max_faulty": 1.0, **options})
    return list(records), report
