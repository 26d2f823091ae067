"""Draws docs/quality.json: `python launch/experiments/plot_quality.py [--set causes --out FILE]`.

One panel a measure, steps along the abscissa, a line a model (mean over seeds, 95 % interval of all of them), the
teacher's guided steps as horizontal lines. Where the set has curves, two more panels: loss and spelling in training.
Exit code 0: done; 2: a file or value is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from launch.common.cli import run_command
from launch.common.command_help import command_parser
from launch.experiments.quality_results import MEASURES, CurvePoint, Language, QualityRow, mean_over_seeds, read_quality


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        "Draw the quality of students by the number of their steps.",
        "python launch/experiments/plot_quality.py --set causes --out docs/quality_causes.png",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("docs/quality.json"), metavar="JSON", help="results of the sweep"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/quality.png"), metavar="PNG", help="the figure")
    parser.add_argument("--set", default="objectives", metavar="NAME", help="table to draw; default: %(default)s")
    parser.add_argument("--language", choices=get_args(Language), default="all", help="of the lines")
    return parser.parse_args(argv)


def draw(rows: Sequence[QualityRow], points: Sequence[CurvePoint], language: Language, out: Path) -> None:
    """Writes the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row.model for row in rows if row.model != "teacher"))
    colors = {model: pyplot.get_cmap("tab20")(place % 20) for place, model in enumerate(models)}
    panels = len(MEASURES) + (len(_CURVES) if points else 0)
    columns = -(-panels // 2)
    figure, grid = pyplot.subplots(2, columns, figsize=(4.6 * columns, 8.0), layout="constrained")
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=False):
        for model, color in colors.items():
            _line(axis, rows, model, language, measure, color)
        teacher = mean_over_seeds(rows, "teacher", language, measure)
        for steps, value in teacher.items():
            style, height = ("-", 2) if steps == max(teacher) else (":", -8)  # so that two labels do not meet
            axis.axhline(value, color="black", linewidth=1, linestyle=style)
            axis.annotate(f"teacher {steps}", (1, value), xytext=(2, height), textcoords="offset points", fontsize=7)
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.set_xlabel("steps")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    for axis, (name, title) in zip(axes[len(MEASURES) :], _CURVES.items(), strict=False):
        for model, color in colors.items():
            _curves(axis, points, model, name, color)
        axis.set_xlabel("share of the training")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _line(axis: Any, rows: Sequence[QualityRow], model: str, language: Language, measure: str, color: Any) -> None:
    means = mean_over_seeds(rows, model, language, measure)
    style = "--" if model.startswith("undistilled") else "-"
    axis.plot(list(means), list(means.values()), style, marker="o", markersize=3, color=color, label=model)
    for row in rows:
        interval = getattr(row, f"{measure}_95")
        if row.model == model and row.language == language and interval is not None:
            axis.vlines(row.steps, *interval, color=color, alpha=0.35, linewidth=1)


_CURVES = {"loss": "loss while trained, as a share of its first value", "sen_acc": "Sen.ACC while trained"}


def _curves(axis: Any, points: Sequence[CurvePoint], model: str, name: str, color: Any) -> None:
    for seed in sorted({point.seed for point in points if point.model == model}):
        own = [point for point in points if (point.model, point.seed) == (model, seed)]
        unit = own[0].loss if name == "loss" else 1.0
        axis.plot([p.update / own[-1].update for p in own], [getattr(p, name) / unit for p in own], color=color)


def plot(args: argparse.Namespace) -> None:
    """Draws the figure that the command asks for. Raises ValueError for a missing file or an unknown set."""
    if not args.data.is_file():
        raise ValueError(f"--data {args.data}: no such file; launch/experiments/quality_sweep.py makes it")
    quality = read_quality(args.data)
    if args.set not in quality.tables:
        raise ValueError(f"--set {args.set}: {args.data} has {', '.join(quality.tables)}")
    draw(quality.tables[args.set], quality.curves.get(args.set, []), args.language, args.out)
    print(f"wrote {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: plot(args))


if __name__ == "__main__":
    raise SystemExit(main())
