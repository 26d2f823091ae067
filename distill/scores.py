"""What an evaluation reports: values, their intervals, a table to print and a dictionary for JSON.

Legend: N pictures, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from anytext2.randomness import numpy_rng
from distill.ocr import exact_match, ned

Interval = tuple[float, float]
LANGUAGE, HEIGHT = "language ", "height "
"""What the names of groups of lines begin with."""


@dataclass(frozen=True)
class TextScore:
    """How well the lines of a set of pictures read. Rates are in 0..1, over all lines.

    exact_match_95: bootstrap interval over pictures (lines of one picture share its fate, so that resampling lines
    would flatter).
    """

    lines: int
    exact_match: float
    exact_match_95: Interval
    ned: float


@dataclass(frozen=True)
class StructureScore:
    """Agreement of the lines' strokes with their glyphs (`structure.LineStructure`), 0..1, mean over lines."""

    lines: int
    structure: float
    structure_95: Interval


@dataclass(frozen=True)
class LineScores:
    """All that is said of a set of pictures' lines. text and groups (the text score of each language and height) are
    None and empty without an OCR engine."""

    text: TextScore | None
    structure: StructureScore
    groups: dict[str, TextScore]


@dataclass(frozen=True)
class RowScore:
    """One way of sampling, scored. All but the scores of lines are means over pictures.

    latent_rmse: root mean square error of a picture's scaled latent to the reference row's; psnr_db: of its pixels,
    peak to peak 1 (None: identical to the reference); nfe: UNet calls for one picture; seconds_per_image: median over
    batches of WriteNet + UNet calls + decoding, divided by the batch; distance: sliced Wasserstein distance of the
    row's latents to the reference row's.
    """

    key: str
    role: str
    sampler: str
    steps: int
    guidance: float
    nfe: int
    latent_rmse: float
    latent_rmse_95: Interval
    psnr_db: float | None
    distance: float
    lines: LineScores
    seconds_per_image: float


@dataclass(frozen=True)
class Comparison:
    """Is `row` nearer to the reference than `other`, picture by picture (same start noise)?

    rmse_difference: mean of rmse(row) - rmse(other), below 0 where `row` is nearer; wins: share of such pictures.
    """

    row: str
    other: str
    rmse_difference: float
    rmse_difference_95: Interval
    wins: float


def rmse(latent: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of each sample of [B, ...], float64 [B]."""
    difference = latent.double() - reference.double()
    return difference.flatten(1).square().mean(dim=1).sqrt()


def psnr(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each image of [B, C, H, W] in [0, 1], float64 [B]; inf where equal."""
    return -20.0 * rmse(image, reference).log10()


def mean_interval(values: Sequence[float], weights: Sequence[float] | None, resamples: int, seed: int) -> Interval:
    """95 % percentile bootstrap interval (Efron 1979) of sum(values) / sum(weights); weights default to ones.

    values[i] and weights[i] belong to one picture and are drawn together: for a rate over lines, values are a
    picture's hits and weights its lines. Draws without any weight are left out. NaN where nothing was measured.
    """
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, dtype=np.float64)
    assert value.shape == weight.shape and value.ndim == 1
    if weight.sum() == 0:
        return (math.nan, math.nan)
    rng = numpy_rng(seed, 0, 0, "bootstrap")
    picks = (rng.integers(0, len(value), len(value)) for _ in range(resamples))
    ratios = [value[pick].sum() / weight[pick].sum() for pick in picks if weight[pick].sum() > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return (float(low), float(high))


def score_text(read: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], resamples: int, seed: int) -> TextScore:
    """Scores what was read in N pictures, line by line, against what is written there."""
    pairs = [list(zip(r, t, strict=True)) for r, t in zip(read, truth, strict=True)]
    hits = [float(sum(exact_match(*pair) for pair in picture)) for picture in pairs]
    lines = [float(len(picture)) for picture in pairs]
    n_lines = int(sum(lines))
    similarity = [ned(*pair) for picture in pairs for pair in picture]
    return TextScore(
        lines=n_lines,
        exact_match=sum(hits) / n_lines if n_lines else math.nan,
        exact_match_95=mean_interval(hits, lines, resamples, seed),
        ned=sum(similarity) / n_lines if n_lines else math.nan,
    )


def score_structure(found: Sequence[Sequence[float]], resamples: int, seed: int) -> StructureScore:
    """Of the lines of N pictures."""
    sums, lines = [sum(picture) for picture in found], [float(len(picture)) for picture in found]
    n_lines = int(sum(lines))
    mean = sum(sums) / n_lines if n_lines else math.nan
    return StructureScore(n_lines, mean, mean_interval(sums, lines, resamples, seed))


def compare(
    row: str, errors: Sequence[float], other: str, other_errors: Sequence[float], resamples: int, seed: int
) -> Comparison:
    """Paired comparison of two rows' errors, one entry a picture."""
    difference = np.asarray(errors) - np.asarray(other_errors)
    return Comparison(
        row=row,
        other=other,
        rmse_difference=float(difference.mean()),
        rmse_difference_95=mean_interval(difference.tolist(), None, resamples, seed),
        wins=float((difference < 0).mean()),
    )


def table(
    rows: Sequence[RowScore], originals: LineScores | None = None, reconstructions: LineScores | None = None
) -> str:
    """The rows as text for a terminal, one line each, after the pictures that bound what can be read."""
    bounds = [
        (name, lines)
        for name, lines in (("originals", originals), ("VAE reconstructions", reconstructions))
        if lines is not None
    ]
    everything = [lines for _, lines in bounds] + [row.lines for row in rows]
    groups = sorted({name for lines in everything for name in lines.groups if name.startswith(LANGUAGE)})

    def cells(lines: LineScores) -> list[str]:
        rates = [f"{lines.groups[name].exact_match:.3f}" if name in lines.groups else "-" for name in groups]
        read = ["-", "-"] if lines.text is None else [_rate(lines.text), f"{lines.text.ned:.3f}"]
        return [*read, *rates, f"{lines.structure.structure:.3f}"]

    languages = [name.removeprefix(LANGUAGE) for name in groups]
    head = ["row", "guidance", "NFE", "s/image", "latent RMSE", "PSNR dB", "distance"]
    head += ["exact match (95 %)", "NED", *languages, "structure"]
    body = [[name, *[""] * 6, *cells(lines)] for name, lines in bounds]
    for row in rows:
        body.append(
            [
                f"{row.role} {row.sampler} {row.steps}",
                "none" if row.guidance == 1.0 else f"{row.guidance:g}",
                str(row.nfe),
                f"{row.seconds_per_image:.3f}",
                f"{row.latent_rmse:.4f}",
                "same" if row.psnr_db is None else f"{row.psnr_db:.2f}",
                f"{row.distance:.4f}",
                *cells(row.lines),
            ]
        )
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = []
    for line in (head, *body):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def to_plain(value: Any) -> Any:
    """A (nested) score as what JSON can hold: dictionaries and lists; numbers that are not finite become None."""
    if hasattr(value, "__dataclass_fields__"):
        return to_plain(asdict(value))
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def lines_to_plain(lines: LineScores) -> dict[str, Any]:
    """One flat dictionary: the text score beside the others, None where it was not measured."""
    flat = to_plain(lines)
    structure = flat.pop("structure")
    flat |= {name: structure[name] for name in ("structure", "structure_95")}
    text = flat.pop("text") or dict.fromkeys(("lines", "exact_match", "exact_match_95", "ned"))
    return {**text, **flat}


def row_to_plain(row: RowScore) -> dict[str, Any]:
    """One flat dictionary for one row."""
    flat = to_plain(row)
    del flat["lines"]
    return {**flat, **lines_to_plain(row.lines)}


def _rate(score: TextScore) -> str:
    low, high = score.exact_match_95
    return f"{score.exact_match:.3f} ({low:.3f}-{high:.3f})"
