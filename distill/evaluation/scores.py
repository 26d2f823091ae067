"""What an evaluation reports: values, their intervals, a table to print and a dictionary for JSON.

Legend: N pictures, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from anytext2.core.rng import numpy_rng
from distill.evaluation.ocr import exact_match, ned

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)
LANGUAGE, HEIGHT = "language ", "height "
"""What the names of groups of lines begin with."""


@dataclass(frozen=True)
class TextScore:
    """How well the lines of a set of pictures read. Rates are in 0..1, over all lines.

    exact_match_95, ned_95: bootstrap intervals over pictures (lines of one picture share its fate, so that resampling
    lines would flatter).
    """

    lines: int
    exact_match: float
    exact_match_95: Interval
    ned: float
    ned_95: Interval = UNKNOWN


@dataclass(frozen=True)
class StructureScore:
    """Agreement of the lines' strokes with their glyphs (`structure.LineStructure`), 0..1, mean over lines."""

    lines: int
    structure: float
    structure_95: Interval


@dataclass(frozen=True)
class ImageSimilarity:
    """How near a row's pictures are to the reference row's.

    psnr_db: of the pixels, peak to peak 1 (None: identical); background: SSIM outside the text boxes, 1 where
    identical; distance: sliced Wasserstein distance of the latents.
    """

    pictures: int
    psnr_db: float | None
    psnr_db_95: Interval
    background: float
    background_95: Interval
    distance: float
    distance_95: Interval


@dataclass(frozen=True)
class GroupScore:
    """The lines of one language or height. text: None without an OCR engine; likeness: of the pictures that hold a line
    of that language, None for heights and for pictures that are no row."""

    text: TextScore | None
    structure: StructureScore
    likeness: ImageSimilarity | None = None


@dataclass(frozen=True)
class LineScores:
    """All that is said of a set of pictures' lines. text: None without an OCR engine; text_distance: sliced Wasserstein
    distance of the lines to the reference row's in what an OCR engine sees, None without that engine."""

    text: TextScore | None
    structure: StructureScore
    groups: dict[str, GroupScore]
    text_distance: float | None = None
    text_distance_95: Interval = UNKNOWN


@dataclass(frozen=True)
class NetworkScores:
    """What networks that the user brings say of a row's pictures; None: not asked for (`distill.image_networks`)."""

    clip_score: float | None = None
    clip_score_95: Interval | None = None
    fid: float | None = None
    kid: float | None = None


@dataclass(frozen=True)
class RowScore:
    """One way of sampling, scored. All but the scores of lines are over pictures.

    latent_rmse: mean root mean square error of a picture's scaled latent to the reference row's; nfe: UNet calls for
    one picture; seconds_per_image: median over batches of WriteNet + UNet calls + decoding, divided by the batch.
    """

    key: str
    role: str
    sampler: str
    steps: int
    guidance: float
    nfe: int
    latent_rmse: float
    latent_rmse_95: Interval
    likeness: ImageSimilarity
    lines: LineScores
    seconds_per_image: float
    networks: NetworkScores = NetworkScores()


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
    if weight.sum() == 0 or not np.isfinite(value).all():
        return UNKNOWN
    picks = numpy_rng(seed, 0, 0, "bootstrap").integers(0, len(value), (resamples, len(value)))
    sums, total = (of_pictures[picks].sum(axis=1) for of_pictures in (value, weight))
    low, high = np.percentile(sums[total > 0] / total[total > 0], [2.5, 97.5])
    return (float(low), float(high))


def score_text(read: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], resamples: int, seed: int) -> TextScore:
    """Scores what was read in N pictures, line by line, against what is written there."""
    pairs = [list(zip(r, t, strict=True)) for r, t in zip(read, truth, strict=True)]
    hits = [float(sum(exact_match(*pair) for pair in picture)) for picture in pairs]
    lines = [float(len(picture)) for picture in pairs]
    n_lines = int(sum(lines))
    similarity = [sum(ned(*pair) for pair in picture) for picture in pairs]
    return TextScore(
        lines=n_lines,
        exact_match=sum(hits) / n_lines if n_lines else math.nan,
        exact_match_95=mean_interval(hits, lines, resamples, seed),
        ned=sum(similarity) / n_lines if n_lines else math.nan,
        ned_95=mean_interval(similarity, lines, resamples, seed),
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
    groups = {name: _group_to_plain(group) for name, group in lines.groups.items()}
    distance = {name: to_plain(getattr(lines, name)) for name in ("text_distance", "text_distance_95")}
    return {**_read_to_plain(lines.text, lines.structure), **distance, "groups": groups}


def row_to_plain(row: RowScore) -> dict[str, Any]:
    """One flat dictionary for one row."""
    flat = to_plain(row)
    likeness, networks = flat.pop("likeness"), flat.pop("networks")
    del flat["lines"], likeness["pictures"]
    return {**flat, **likeness, **lines_to_plain(row.lines), **networks}


def _group_to_plain(group: GroupScore) -> dict[str, Any]:
    likeness = {} if group.likeness is None else to_plain(group.likeness)
    return {**_read_to_plain(group.text, group.structure), **likeness}


def _read_to_plain(text: TextScore | None, structure: StructureScore) -> dict[str, Any]:
    read = dict.fromkeys(field.name for field in fields(TextScore)) if text is None else to_plain(text)
    return {**read, **{name: to_plain(getattr(structure, name)) for name in ("structure", "structure_95")}}
