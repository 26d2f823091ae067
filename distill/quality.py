"""The table of docs/quality.json: what students of different objectives spell at 1, 2, 4 and 8 steps.

A row is one model sampled in one number of steps, read in one language. Every measure stands beside its 95 % interval
under the name with `_95`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

Language = Literal["all", "latin", "chinese"]
Interval = tuple[float, float]

MEASURES = {
    "sen_acc": "Sen.ACC (lines read exactly)",
    "ned": "NED (1 - edit distance / length)",
    "structure": "structure (strokes against the glyph page)",
    "psnr": "PSNR to the teacher's 50 steps, dB",
    "distance": "distance of the latents' distribution to the teacher's",
}
"""What is measured, and how a figure calls it."""


@dataclass(frozen=True)
class QualityRow:
    """One row. model: `teacher`, `undistilled` or an objective; lines: how many were read.

    psnr, distance: None where there is nothing to compare with (the reference itself; no picture in that language).
    """

    model: str
    steps: int
    seed: int
    language: Language
    lines: int
    sen_acc: float
    sen_acc_95: Interval
    ned: float
    ned_95: Interval
    structure: float
    structure_95: Interval
    psnr: float | None
    psnr_95: Interval | None
    distance: float | None
    distance_95: Interval | None

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            raise ValueError(f"language={self.language!r}: one of {', '.join(get_args(Language))}")
        if self.steps < 1 or self.lines < 1:
            raise ValueError(f"steps={self.steps}, lines={self.lines}: both must be at least 1")
        for name in MEASURES:
            value, interval = getattr(self, name), getattr(self, f"{name}_95")
            if (value is None) != (interval is None):
                raise ValueError(f"{name}={value}, {name}_95={interval}: both or neither")
            if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
                raise ValueError(f"{name}_95={interval}: a lower and an upper end are needed")


def read_rows(path: Path) -> list[QualityRow]:
    """The rows of a quality.json. Raises ValueError naming the row and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; launch/quality.py makes it") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: line {error.lineno}: {error.msg}") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: an object with a list of `rows` is needed")
    return [_row(path, number, row) for number, row in enumerate(rows)]


def _row(path: Path, number: int, row: Any) -> QualityRow:
    names = {field.name for field in fields(QualityRow)}
    if not isinstance(row, dict) or set(row) != names:
        given = set(row) if isinstance(row, dict) else set()
        raise ValueError(f"{path}: rows[{number}]: missing {sorted(names - given)}, unknown {sorted(given - names)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    try:
        return QualityRow(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: rows[{number}]: {error}") from error


def write_rows(path: Path, rows: Sequence[QualityRow], facts: dict[str, Any]) -> None:
    """Writes `rows` with `facts` (command, data, budget) beside them, one row a line so that changes can be read."""
    lines = ",\n".join("  " + json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    head = json.dumps(facts, ensure_ascii=False, indent=1)[1:-1].rstrip()
    path.write_text(f'{{{head},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def mean_over_seeds(rows: Sequence[QualityRow], model: str, language: Language, measure: str) -> dict[int, float]:
    """The measure by steps, averaged over seeds; steps without a value are left out."""
    found: dict[int, list[float]] = {}
    for row in rows:
        value = getattr(row, measure)
        if row.model == model and row.language == language and value is not None:
            found.setdefault(row.steps, []).append(value)
    return {steps: sum(values) / len(values) for steps, values in sorted(found.items())}
