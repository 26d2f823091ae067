"""Several runs side by side: the settings that differ, what came out, and their curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.checkpoint.run_folder import RECIPE, RUN_INFO
from distill.config.differences import recipe_values
from distill.config.recipes import load_recipe
from distill.tracking.metric_names import LOSS, SPEED, SPELLING, read_metrics
from distill.tracking.progress import duration
from distill.tracking.reports.standing import require_run
from distill.viz.curves import Curve, draw_curves

NOT_COMPARED = ("name", "run_root")
"""Settings that every run has of its own."""
CURVES = {LOSS: "loss", SPELLING: "spelling (lines read right)", SPEED: "samples a second"}
EVALUATED = {"exact_match": "spelling", "ned": "NED", "structure": "structure"}
"""Measures of an evaluation's summary.json."""


@dataclass(frozen=True)
class ComparedRun:
    """settings: of recipe.yaml, by dotted key. facts: run.json. records: lines of metrics.jsonl. summary: of the
    newest evaluation, empty without one."""

    run_dir: Path
    label: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any]

    def curve(self, name: str) -> Curve:
        return [(int(r["step"]), float(r[name])) for r in self.records if name in r]

    @property
    def preview(self) -> Path | None:
        return max((self.run_dir / "previews").glob("*.png"), default=None)


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Raises ValueError for fewer than two runs, one that is named twice, or a folder that is none."""
    if len({folder.resolve() for folder in folders}) < 2:
        raise ValueError(f"{folders[0]}: one run cannot be compared; name two or more, as in runs/a runs/b")
    for folder in folders:
        require_run(folder)
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return [_read(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _read(folder: Path, label: str) -> ComparedRun:
    summaries = sorted(folder.glob("evaluations/*/summary.json"), key=lambda path: path.stat().st_mtime)
    summary = _json(summaries[-1] if summaries else folder / "summary.json")
    settings = recipe_values(load_recipe(folder / RECIPE))
    return ComparedRun(folder, label, settings, _json(folder / RUN_INFO), list(read_metrics(folder)), summary)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def different_settings(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """A row [key, value of each run] for each setting that is not the same in all of them."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NOT_COMPARED)
    rows = [[key, *(_text(run.settings.get(key)) for run in runs)] for key in keys]
    facts = [[fact, *(_text(run.facts.get(fact)) for run in runs)] for fact in ("ranks", "device", "precision")]
    return [row for row in (*rows, *facts) if len(set(row[1:])) > 1]


def results(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """A row [measure, value of each run] for each result that any of them has."""
    columns = [_results_of(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "-") for column in columns)] for name in names]


def _results_of(run: ComparedRun) -> dict[str, str]:
    found: dict[str, str] = {}
    loss, spelling, speed = (run.curve(name) for name in (LOSS, SPELLING, SPEED))
    if loss:
        found["updates"] = f"{loss[-1][0]:.0f} of {run.settings['train.max_steps']}"
        found["loss, last"] = f"{loss[-1][1]:.5f}"
    if spelling:
        at, best = max(spelling, key=lambda point: (point[1], -point[0]))
        found["spelling, last"] = f"{spelling[-1][1]:.3f}"
        found["spelling, best"] = f"{best:.3f} (update {at:.0f})"
    if speed:
        found["samples/s, median"] = f"{sorted(value for _, value in speed)[len(speed) // 2]:.1f}"
    if len(run.records) > 1:
        found["time logged"] = duration(run.records[-1]["time"] - run.records[0]["time"])
    for name, what in (("device_memory_peak_gib", "GPU peak, GiB"), ("tree_rss_gib", "host memory, GiB")):
        if memory := run.curve(f"system/{name}"):
            found[what] = f"{max(value for _, value in memory):.1f}"
    for row in run.summary.get("rows", []):
        if row.get("role") == "student":
            for measure, what in EVALUATED.items():
                if isinstance(row.get(measure), float):
                    found[f"evaluated, {row['steps']} steps: {what}"] = f"{row[measure]:.3f}"
    return found


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value) or "''"


def draw_comparison(runs: Sequence[ComparedRun], out: Path) -> None:
    """Writes a PNG with the runs' curves, and the last preview of each."""
    panels = {title: {run.label: run.curve(name) for run in runs} for name, title in CURVES.items()}
    draw_curves(panels, {run.label: run.preview for run in runs if run.preview is not None}, out)
