"""An evaluation as a table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from distill.evaluation.accumulator import LINE_METRICS
from distill.evaluation.image_metrics import PICTURE_METRICS
from distill.evaluation.scores import (
    LANGUAGE,
    LATENT_DISTANCE,
    NETWORK_COLUMNS,
    Interval,
    LineScores,
    NetworkScores,
    RowScore,
    Score,
)

_OCR_METRICS = [name for name, metric in LINE_METRICS.items() if metric.needs_ocr]
_OTHER_LINE_METRICS = [name for name, metric in LINE_METRICS.items() if not metric.needs_ocr]
_ROW_HEAD = [
    "row",
    "guidance",
    "NFE",
    "s/image",
    "latent RMSE",
    *(m.title for m in PICTURE_METRICS.values()),
    "distance",
]


def format_scores(
    rows: Sequence[RowScore], originals: LineScores | None = None, reconstructions: LineScores | None = None
) -> str:
    """A line for each row, below originals and reconstructions, which bound what can be read.

    Columns of networks that were not asked for are left out.
    """
    bounds = [
        (name, lines)
        for name, lines in (("originals", originals), ("VAE reconstructions", reconstructions))
        if lines is not None
    ]
    everything = [lines for _, lines in bounds] + [row.lines for row in rows]
    languages = sorted({name for lines in everything for name in lines.groups if name.startswith(LANGUAGE)})
    networks = measured_networks(row.networks for row in rows)
    head = [*_ROW_HEAD, *(f"{LINE_METRICS[name].title} (95 %)" for name in _OCR_METRICS)]
    head += [name.removeprefix(LANGUAGE) for name in languages]
    head += ["text distance", *(LINE_METRICS[name].title for name in _OTHER_LINE_METRICS)]
    head += [NETWORK_COLUMNS[name] for name in networks]
    body = [
        [name, *[""] * (len(_ROW_HEAD) - 1), *_line_cells(lines, languages), *[""] * len(networks)]
        for name, lines in bounds
    ]
    body += [
        [*_row_cells(row), *_line_cells(row.lines, languages), *network_cells(row.networks, networks)] for row in rows
    ]
    return align_columns(head, body)


def measured_networks(scores: Iterable[NetworkScores]) -> list[str]:
    """The names in NETWORK_COLUMNS that any of the scores has a value for."""
    every = list(scores)
    return [name for name in NETWORK_COLUMNS if any(getattr(one, name) is not None for one in every)]


def network_cells(scores: NetworkScores, names: Sequence[str]) -> list[str]:
    """The cells of the columns `names` of NETWORK_COLUMNS."""
    return [_cell(getattr(scores, name), 4) for name in names]


def align_columns(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Cells as text: the first column to the left, all others to the right, a rule under the head."""
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = []
    for line in (head, *body):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def format_with_interval(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def _row_cells(row: RowScore) -> list[str]:
    return [
        f"{row.role} {row.sampler} {row.steps}",
        "none" if row.guidance == 1.0 else f"{row.guidance:g}",
        str(row.nfe),
        _cell(row.seconds_per_image, 3),
        _cell(row.latent_rmse.value, 4),
        *(_cell(row.pictures[name].value, metric.digits) for name, metric in PICTURE_METRICS.items()),
        _cell(row.pictures[LATENT_DISTANCE].value, 4),
    ]


def _line_cells(lines: LineScores, languages: Sequence[str]) -> list[str]:
    by_language = [lines.groups[name].lines["exact_match"] if name in lines.groups else Score() for name in languages]
    return [
        *(_interval_cell(lines.scores[name]) for name in _OCR_METRICS),
        *(_cell(score.value, 3) for score in by_language),
        _cell(lines.text_distance.value, 4),
        *(_cell(lines.scores[name].value, 3) for name in _OTHER_LINE_METRICS),
    ]


def _interval_cell(score: Score) -> str:
    if score.value is None or score.interval is None:
        return "-"
    return format_with_interval(score.value, score.interval)


def _cell(value: float | None, digits: int) -> str:
    """'-' where nothing was measured, 'same' for the infinite PSNR of identical pictures."""
    if value is None:
        return "-"
    return "same" if math.isinf(value) else f"{value:.{digits}f}"
