"""The table of docs/quality.json: what students of different objectives spell at 1, 2, 4 and 8 steps.

A row is one model sampled in one number of steps, read in one language. Every measure stands beside its 95 % interval
under the name with `_95`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from distill.tracking.metric_names import LOSS, SPELLING, present_record

Language = Literal["all", "latin", "chinese"]
Interval = tuple[float, float]

MEASURES = {
    "sen_acc": "Sen.ACC (lines read exactly)",
    "ned": "NED (1 - edit distance / length)",
    "structure": "structure (strokes against the glyph page)",
    "psnr": "PSNR to the teacher's 50 steps, dB",
    "background": "background (SSIM to the teacher's outside the text)",
    "distance": "distance to the teacher's latents",
    "text_distance": "text distance to the teacher's lines",
}
"""What is measured, and how a figure calls it."""

_COMPARED = ("psnr", "background", "distance", "text_distance")  # with the reference


@dataclass(frozen=True)
class QualityRow:
    """One row. model: `teacher`, `undistilled`, that with another sampler, or an objective; calls: of the UNet, for one
    picture; lines: how many were read.

    psnr, background, distance, text_distance: None where there is nothing to compare with (the reference itself; no
    picture in that language). text_distance is known for all lines together only.
    """

    model: str
    steps: int
    calls: int
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
    background: float | None
    background_95: Interval | None
    distance: float | None
    distance_95: Interval | None
    text_distance: float | None
    text_distance_95: Interval | None

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            raise ValueError(f"language={self.language!r}: one of {', '.join(get_args(Language))}")
        if min(self.steps, self.calls, self.lines) < 1:
            raise ValueError(f"steps={self.steps}, calls={self.calls}, lines={self.lines}: all must be at least 1")
        for name in MEASURES:
            value, interval = getattr(self, name), getattr(self, f"{name}_95")
            if value is None and name not in _COMPARED:
                raise ValueError(f"{name}=None: only what is compared with the teacher may be unknown")
            if (value is None) != (interval is None):
                raise ValueError(f"{name}={value}, {name}_95={interval}: both or neither")
            if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
                raise ValueError(f"{name}_95={interval}: a lower and an upper end are needed")


@dataclass(frozen=True)
class CurvePoint:
    """What a student spelled while it was trained, on a few held-out pictures. loss: its mean since the last point."""

    model: str
    seed: int
    update: int
    loss: float
    sen_acc: float
    ned: float


@dataclass
class Quality:
    """A quality.json: tables and curves by the name of their set. The table `objectives` is its `rows`."""

    tables: dict[str, list[QualityRow]] = field(default_factory=dict)
    curves: dict[str, list[CurvePoint]] = field(default_factory=dict)

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Writes everything, one row a line so that changes can be read, after `facts`."""
        parts = [json.dumps(facts, ensure_ascii=False, indent=1)[1:-1].strip("\n")] if facts else []
        parts += [f' "{_ROWS if name == _FIRST else name}": {_lines(rows)}' for name, rows in self.tables.items()]
        curves = ",\n".join(f'  "{name}": {_lines(points)}' for name, points in self.curves.items())
        path.write_text("{\n" + ",\n".join([*parts, f' "curves": {{\n{curves}\n }}']) + "\n}\n", encoding="utf-8")


_FIRST, _ROWS = "objectives", "rows"
_Line = TypeVar("_Line", QualityRow, CurvePoint)


def _lines(rows: Iterable[QualityRow | CurvePoint]) -> str:
    return "[\n" + ",\n".join("  " + json.dumps(asdict(row), ensure_ascii=False) for row in rows) + "\n ]"


def read_quality(path: Path) -> Quality:
    """What a quality.json holds; nothing where there is no such file.

    Raises ValueError naming what is wrong, and why.
    """
    if not path.is_file():
        return Quality()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(content, dict) or not isinstance(content.get(_ROWS), list):
        raise ValueError(f"{path}: an object with a list of `{_ROWS}` is needed")
    found = Quality()
    for name, value in content.items():
        if name == "curves":
            found.curves = {key: _read(f"{path}: curves.{key}", points, CurvePoint) for key, points in value.items()}
        elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
            found.tables[_FIRST if name == _ROWS else name] = _read(f"{path}: {name}", value, QualityRow)
    return found


def _read(where: str, values: Sequence[Any], kind: type[_Line]) -> list[_Line]:
    names = {known.name for known in fields(kind)}
    found = []
    for number, value in enumerate(values):
        if not isinstance(value, dict) or set(value) != names:
            given = set(value) if isinstance(value, dict) else set()
            raise ValueError(f"{where}[{number}]: missing {sorted(names - given)}, unknown {sorted(given - names)}")
        try:
            found.append(kind(**_with_tuples(value)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}[{number}]: {error}") from error
    return found


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def curve_points(metrics: Iterable[Mapping[str, Any]], model: str, seed: int) -> list[CurvePoint]:
    """The points of a training's metrics.jsonl at which the student was read.

    Of an update that was logged twice, by a run that was resumed, the last one counts.
    """
    read = {row["step"]: row for row in map(present_record, metrics) if SPELLING in row}
    return [
        CurvePoint(model, seed, step, row[LOSS], row[SPELLING], row["eval/ned"]) for step, row in sorted(read.items())
    ]


def quality_rows(summary: dict[str, Any], student: str, seed: int) -> Iterator[QualityRow]:
    """The rows of an evaluation's summary, all lines and by language.

    student: what its student is called; rows of teacher and undistilled model are left out where there is one, since
    an evaluation of their own has them. `undistilled` is AnyText2's guided sampler, `undistilled_phased` the same model
    with that of a student.
    """
    for row in summary["rows"]:
        if student and row["role"] != "student":
            continue
        model = student or row["role"]
        if row["role"] == "undistilled" and row["sampler"] != "ddim":
            model += f"_{row['sampler']}"
        reference = row["key"] == summary["reference"]
        for language, group in (("all", row), *((n, row["groups"].get(f"language {n}")) for n in ("Latin", "Chinese"))):
            if group is None:
                continue
            group = {"text_distance": None, "text_distance_95": None} | group  # no language has one
            found: dict[str, Any] = {
                name: group[_KEYS.get(name, name)] for name in (*MEASURES, *(f"{m}_95" for m in MEASURES))
            }
            if reference:
                found |= {name: None for measure in _COMPARED for name in (measure, f"{measure}_95")}
            yield QualityRow(
                model=model,
                steps=row["steps"],
                calls=row["nfe"],
                seed=seed,
                language=language.lower(),  # type: ignore[arg-type]
                lines=group["lines"],
                **_with_tuples(found),
            )


_KEYS = {"sen_acc": "exact_match", "sen_acc_95": "exact_match_95", "psnr": "psnr_db", "psnr_95": "psnr_db_95"}


def mean_over_seeds(rows: Sequence[QualityRow], model: str, language: Language, measure: str) -> dict[int, float]:
    """The measure by steps, averaged over seeds; steps without a value are left out."""
    found: dict[int, list[float]] = {}
    for row in rows:
        value = getattr(row, measure)
        if row.model == model and row.language == language and value is not None:
            found.setdefault(row.steps, []).append(value)
    return {steps: sum(values) / len(values) for steps, values in sorted(found.items())}
