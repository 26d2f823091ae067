"""AnyWord annotation JSON -> records. The only place that knows the names of its fields.

{"data_root": str, "data_list": [{"img_name", "caption"?, "wm_score"?, "annotations"?: [
    {"polygon": [[x, y], ...], "text", "language", "valid"?, "color"?: [r, g, b]}, ...]}, ...]}

Polygons are in pixels of the image file; fields that are not named here are ignored. A fault that the file's author
must mend (not JSON, a field missing or of the wrong form) is a ValueError; data that is legal but cannot be used is
left out and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anytext2.batch import UNSET_COLOR, Record, TextLine

PLACEHOLDER = "*"
"""Stands for a line of text in the text caption, and must therefore stand nowhere else."""


@dataclass(frozen=True)
class LoadReport:
    """What loading kept and left out. skipped: reason ("pictures: ..." or "lines: ...") -> how many."""

    pictures: int
    lines: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        left_out = "; ".join(f"{reason}: {count}" for reason, count in sorted(self.skipped.items()))
        return f"{self.pictures} pictures with {self.lines} lines" + (f" (left out: {left_out})" if left_out else "")


def load_records(
    paths: str | Path | Iterable[str | Path],
    wm_threshold: float = 1.0,
    cap_watermark: bool = False,
    fraction: float = 1.0,
) -> tuple[list[Record], LoadReport]:
    """Reads annotation files, in order.

    wm_threshold: pictures with a greater watermark score are left out. cap_watermark: the caption says whether there
    are watermarks (score above 0.5), where a score is given. fraction: share of each file's list to use, from its
    beginning. A relative `data_root` is relative to the file's folder. Whether the pictures exist is not checked here.
    Raises ValueError with one line that names file and field.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: {fraction} must be in (0, 1]")
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths):
        root, items = _read(path)
        used = items[: max(1, round(len(items) * fraction))]
        skipped["pictures: beyond the fraction in use"] += len(items) - len(used)
        for number, item in enumerate(used):
            where = f"{path}: data_list[{number}]"
            score = _number(item, "wm_score", where)
            if score is not None and score > wm_threshold:
                skipped["pictures: watermark score above the threshold"] += 1
                continue
            records.append(_record(item, root, where, score if cap_watermark else None, skipped))
    lines = sum(len(record.lines) for record in records)
    return records, LoadReport(len(records), lines, {reason: n for reason, n in skipped.items() if n})


def _read(path: Path) -> tuple[Path, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: annotation file does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the annotation file ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with 'data_root' and 'data_list', got a {_kind(content)}")
    root = path.parent / _required(content, "data_root", str, str(path))
    return root, _required(content, "data_list", list, str(path))


def _record(
    item: dict[str, Any], root: Path, where: str, watermark_score: float | None, skipped: Counter[str]
) -> Record:
    name = _required(item, "img_name", str, where)
    caption = _optional(item, "caption", str, where) or ""
    if watermark_score is not None:
        caption += " with watermarks " if watermark_score > 0.5 else " no watermarks "
    lines, ignored = [], []
    for number, annotation in enumerate(_optional(item, "annotations", list, where) or []):
        here = f"{where}.annotations[{number}]"
        polygon = _polygon(annotation, here)
        if polygon is None:
            skipped["lines: empty polygon"] += 1
        elif annotation.get("valid") is False:
            ignored.append(polygon)
            skipped["lines: marked invalid (ignored by the loss)"] += 1
        elif not (text := _required(annotation, "text", str, here)).strip():
            ignored.append(polygon)
            skipped["lines: empty text (ignored by the loss)"] += 1
        else:
            language = _required(annotation, "language", str, here)
            lines.append(TextLine(text, polygon, language, _color(annotation, here)))
    return Record(root / name, name, caption.replace(PLACEHOLDER, " "), tuple(lines), tuple(ignored))


def _polygon(annotation: Any, where: str) -> np.ndarray | None:
    """Corners float32 [P, 2], or None for an empty list."""
    corners = _required(annotation, "polygon", list, where)
    if not corners:
        return None
    try:
        polygon = np.asarray(corners, dtype=np.float32)
    except (TypeError, ValueError):
        polygon = np.empty(0, np.float32)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3 or not np.isfinite(polygon).all():
        raise ValueError(f"{where}.polygon: expected at least three [x, y] pairs, got {_short(corners)}")
    return polygon


def _color(annotation: dict[str, Any], where: str) -> tuple[int, int, int] | None:
    value = _optional(annotation, "color", list, where)
    if value is None or value == [UNSET_COLOR] * 3:
        return None
    if len(value) != 3 or not all(isinstance(c, (int, float)) and 0 <= c <= 255 for c in value):
        raise ValueError(f"{where}.color: expected [red, green, blue] in 0..255, got {_short(value)}")
    red, green, blue = (round(c) for c in value)
    return red, green, blue


def _number(item: Any, name: str, where: str) -> float | None:
    value = _optional(item, name, (int, float), where)
    return None if value is None else float(value)


def _required(item: Any, name: str, kind: type, where: str) -> Any:
    value = _optional(item, name, kind, where)
    if value is None:
        raise ValueError(f"{where}.{name}: missing; a {_NAMES[kind]} is needed")
    return value


def _optional(item: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object, got a {_kind(item)}")
    value = item.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        wanted = _NAMES[kind[0] if isinstance(kind, tuple) else kind]
        raise ValueError(f"{where}.{name}: expected a {wanted}, got {_short(value)}")
    return value


_NAMES: dict[type, str] = {str: "string", list: "list", int: "number", float: "number"}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
