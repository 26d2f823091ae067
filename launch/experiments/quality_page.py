"""The tables of docs/QUALITY.md, each between two marks of the page: ``<!-- NAME -->`` and ``<!-- end NAME -->``.

NAME is a set of the plan for everything that was measured, ``SET students`` for that without teacher and undistilled
model, ``SET goals`` for what was to be reached beside what was, and ``SET costs`` for what each variant differs by from
the set's first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.experiments.quality_results import CurvePoint, Quality, QualityRow, mean_over_seeds


@dataclass(frozen=True)
class Goal:
    """A measure in so many steps as a share of the teacher's in its most, or of the undistilled model's in as many.

    at_most: the share may not be greater, instead of not less.
    """

    measure: str
    steps: int
    share: float
    of: str = "teacher"
    at_most: bool = False

    @property
    def title(self) -> str:
        bound = "at most" if self.at_most else "at least"
        return f"{self.measure} at {self.steps}: {bound} {self.share:.1%} of the {self.of}'s"


GOALS = (
    Goal("sen_acc", 1, 0.90),
    Goal("sen_acc", 2, 0.97),
    Goal("sen_acc", 4, 0.99),
    Goal("sen_acc", 8, 0.995),
    Goal("structure", 4, 0.97),
    Goal("distance", 2, 0.5, "undistilled", at_most=True),
    Goal("distance", 4, 0.25, "undistilled", at_most=True),
)
COST_STEPS = 4
_DIGITS = {"ned": 3, "structure": 3, "psnr": 1, "background": 3, "distance": 3, "text_distance": 5}


def write_page(path: Path, quality: Quality) -> None:
    """Fills the marks of every set of `quality`. Raises ValueError as `require_marks`."""
    require_marks(path, list(quality.tables))
    text = path.read_text(encoding="utf-8")
    for name, rows in quality.tables.items():
        for view, table in _VIEWS.items():
            first, last = _marks(name + view)
            if first in text:
                before, after = text.split(first)[0], text.split(last)[1]
                text = f"{before}{first}\n{table(rows, quality.curves.get(name, []))}\n{last}{after}"
    path.write_text(text, encoding="utf-8")


def require_marks(path: Path, names: Sequence[str]) -> None:
    """Raises ValueError unless the file has a place for every set, and each of its places has an end."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name in names:
        begun = [view for view in _VIEWS if _marks(name + view)[0] in text]
        for view in begun or [""]:
            first, last = _marks(name + view)
            if first not in text or last not in text:
                raise ValueError(f"{path}: the marks {first} and {last}, between which the table is put, are missing")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end {name} -->"


def full_table(rows: Sequence[QualityRow], _: Sequence[CurvePoint] = ()) -> str:
    """A row for each model and number of steps: all lines, means over seeds."""
    titles = ["model", "steps", "calls", "seeds", "Sen.ACC", "Latin", "Chinese", "NED", "structure", "PSNR"]
    body = []
    for model in _models(rows):
        for steps in sorted({row.steps for row in rows if row.model == model}, reverse=model == "teacher"):
            same = [row for row in rows if (row.model, row.steps) == (model, steps)]
            every = [row for row in same if row.language == "all"]
            cells = [model, str(steps), str(every[0].calls), str(len(every)), _with_interval(every, "sen_acc")]
            cells += [_mean([r for r in same if r.language == n], "sen_acc", 3) for n in ("latin", "chinese")]
            body.append(cells + [_mean(every, name, digits) for name, digits in _DIGITS.items()])
    return _table([*titles, "background", "distance", "text distance"], body)


def students_table(rows: Sequence[QualityRow], _: Sequence[CurvePoint] = ()) -> str:
    """As `full_table`, without what every set is compared with."""
    return full_table([row for row in rows if _is_student(row.model)])


def goals_table(rows: Sequence[QualityRow], _: Sequence[CurvePoint] = ()) -> str:
    """A row for each model beside the teacher; what reaches its goal is bold."""
    models = [model for model in _models(rows) if model != "teacher"]
    body = [[model, *(_reached(rows, model, goal) for goal in GOALS)] for model in models]
    return _table(["model", *(goal.title for goal in GOALS)], body)


def _reached(rows: Sequence[QualityRow], model: str, goal: Goal) -> str:
    own, whole = (mean_over_seeds(rows, name, "all", goal.measure) for name in (model, goal.of))
    value, other = own.get(goal.steps), whole.get(max(whole) if goal.of == "teacher" else goal.steps)
    if value is None or other is None:
        return "-"
    share = value / other
    text = f"{share:.1%}"
    return f"**{text}**" if (share <= goal.share if goal.at_most else share >= goal.share) else text


def costs_table(rows: Sequence[QualityRow], curves: Sequence[CurvePoint]) -> str:
    """A row for each student, in COST_STEPS steps; every score beside its difference from the first student's.

    The difference's 95 % half-width is that of two independent readings, the root of both half-widths' squares: too
    wide where both read the same lines, and without the chance of another seed. loss: how far it fell while the student
    was trained, from the first reading to the last.
    """
    measures = {"sen_acc": "Sen.ACC", "structure": "structure", "psnr": "PSNR"}
    measures |= {"background": "background", "distance": "distance"}
    models = [model for model in _models(rows) if _is_student(model)]
    body = []
    for model in models:
        cells = [model]
        for name in measures:
            own, first = (_at_cost_steps(rows, m, name) for m in (model, models[0]))
            digits = _DIGITS.get(name, 3)
            cells.append("-" if own is None else f"{own[0]:.{digits}f}")
            if own is not None and first is not None and model != models[0]:
                cells[-1] += f" ({own[0] - first[0]:+.{digits}f} ± {math.hypot(own[1], first[1]):.{digits}f})"
        read = [point for point in curves if point.model == model]
        body.append([*cells, f"{read[0].loss:.4f} to {read[-1].loss:.4f}" if read else "-"])
    return _table(["variant", *measures.values(), "loss"], body)


def _at_cost_steps(rows: Sequence[QualityRow], model: str, measure: str) -> tuple[float, float] | None:
    """A model's measure over all lines, and its 95 % half-width: of the first seed's, where there are several."""
    mean = mean_over_seeds(rows, model, "all", measure).get(COST_STEPS)
    if mean is None:
        return None
    row = next(r for r in rows if (r.model, r.steps, r.language) == (model, COST_STEPS, "all"))
    low, high = getattr(row, f"{measure}_95")
    return mean, (high - low) / 2


_VIEWS: dict[str, Callable[[Sequence[QualityRow], Sequence[CurvePoint]], str]] = {
    "": full_table,
    " students": students_table,
    " goals": goals_table,
    " costs": costs_table,
}


def _models(rows: Sequence[QualityRow]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _is_student(model: str) -> bool:
    return model != "teacher" and not model.startswith("undistilled")


def _table(titles: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _mean(rows: Sequence[QualityRow], measure: str, digits: int) -> str:
    values = [value for row in rows if (value := getattr(row, measure)) is not None]
    return f"{sum(values) / len(values):.{digits}f}" if values else "-"


def _with_interval(rows: Sequence[QualityRow], measure: str) -> str:
    """The mean, with its interval for one seed and the seeds' range for several."""
    values = [getattr(row, measure) for row in rows]
    low, high = getattr(rows[0], f"{measure}_95") if len(rows) == 1 else (min(values), max(values))
    return f"{_mean(rows, measure, 3)} ({low:.3f}-{high:.3f})"
