"""An evaluation as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from distill.evaluation.scores import LANGUAGE, Interval, LineScores, RowScore

_COLUMNS = 8  # of a row before those of its lines


def table(
    rows: Sequence[RowScore], originals: LineScores | None = None, reconstructions: LineScores | None = None
) -> str:
    """The rows, one line each, after the pictures that bound what can be read. Columns that no row has are left out."""
    bounds = [
        (name, lines)
        for name, lines in (("originals", originals), ("VAE reconstructions", reconstructions))
        if lines is not None
    ]
    everything = [lines for _, lines in bounds] + [row.lines for row in rows]
    groups = sorted({name for lines in everything for name in lines.groups if name.startswith(LANGUAGE)})
    networks = [
        (name, label)
        for name, label in (("clip_score", "CLIP score"), ("fid", "FID"), ("kid", "KID"))
        if any(getattr(row.networks, name) is not None for row in rows)
    ]
    head = ["row", "guidance", "NFE", "s/image", "latent RMSE", "PSNR dB", "background", "distance"]
    head += ["exact match (95 %)", "NED (95 %)", *(name.removeprefix(LANGUAGE) for name in groups)]
    head += ["text distance", "structure", *(label for _, label in networks)]
    body = [[name, *[""] * (_COLUMNS - 1), *_of_lines(lines, groups), *[""] * len(networks)] for name, lines in bounds]
    for row in rows:
        measured = (getattr(row.networks, name) for name, _ in networks)
        body.append(
            [*_of_row(row), *_of_lines(row.lines, groups), *("-" if v is None else f"{v:.4f}" for v in measured)]
        )
    return aligned(head, body)


def aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Cells as text: the first column to the left, all others to the right, a rule under the head."""
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = []
    for line in (head, *body):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def with_interval(value: float, interval: Interval) -> str:
    low, high = interval
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def _of_row(row: RowScore) -> list[str]:
    return [
        f"{row.role} {row.sampler} {row.steps}",
        "none" if row.guidance == 1.0 else f"{row.guidance:g}",
        str(row.nfe),
        f"{row.seconds_per_image:.3f}",
        f"{row.latent_rmse:.4f}",
        "same" if row.likeness.psnr_db is None else f"{row.likeness.psnr_db:.2f}",
        f"{row.likeness.background:.3f}",
        f"{row.likeness.distance:.4f}",
    ]


def _of_lines(lines: LineScores, groups: Sequence[str]) -> list[str]:
    read = ["-", "-"]
    if lines.text is not None:
        read = [with_interval(lines.text.exact_match, lines.text.exact_match_95)]
        read.append(with_interval(lines.text.ned, lines.text.ned_95))
    texts = [lines.groups[name].text if name in lines.groups else None for name in groups]
    rates = ["-" if text is None else f"{text.exact_match:.3f}" for text in texts]
    distance = "-" if lines.text_distance is None else f"{lines.text_distance:.4f}"
    return [*read, *rates, distance, f"{lines.structure.structure:.3f}"]
