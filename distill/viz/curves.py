"""Curves of several runs in one picture, panel by panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

Curve = Sequence[tuple[float, float]]
"""Points (x, y)."""


def draw_curves(
    panels: Mapping[str, Mapping[str, Curve]], pictures: Mapping[str, Path], out: Path, xlabel: str = "update"
) -> None:
    """Writes a PNG: a panel a measure with a line a run, and below them the last picture of each run.

    panels: title -> run -> its points; a title without points is left out. pictures: run -> a picture file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {title: lines for title, lines in panels.items() if any(lines.values())}
    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    columns = max(len(shown), len(pictures), 1)
    rows = 1 + bool(pictures)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False)
    for axis in grid.flat:
        axis.set_visible(False)
    for axis, (title, lines) in zip(grid[0], shown.items(), strict=False):
        axis.set_visible(True)
        for run, points in lines.items():
            color = f"C{runs.index(run) % 10}"
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, color=color, label=run)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis, (run, path) in zip(grid[-1] if pictures else (), pictures.items(), strict=False):
        axis.set_visible(True)
        with Image.open(path) as picture:
            axis.imshow(picture.convert("RGB"))
        axis.set_title(f"{run}: {path.name}", fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(out, dpi=100, format="png")
    pyplot.close(figure)
