"""The values of an evaluation: scores with their intervals, and what of them goes into summary.json and MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from anytext2.core.rng import numpy_rng

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)
LANGUAGE, HEIGHT = "language ", "height "
"""What the names of groups of lines begin with."""

LATENT_DISTANCE, TEXT_DISTANCE = "distance", "text_distance"
"""Names of the two distances between sets: of latents, and of what an OCR engine sees in the lines."""


@dataclass(frozen=True)
class Score:
    """A metric over a set of pictures or lines, with its 95 % bootstrap interval over pictures.

    Lines of one picture share its fate: resampling lines would flatter. value, interval: None where the metric was not
    measured; NaN where there was nothing to measure. count: how many pictures or lines were measured.
    """

    value: float | None = None
    interval: Interval | None = None
    count: int | None = None


@dataclass(frozen=True)
class GroupScores:
    """The lines of one language or height.

    lines: `exact_match`, `ned` and `structure`, by name. pictures: as `RowScore.pictures`, over the pictures that hold
    a line of that language; empty for heights, and for originals and reconstructions.
    """

    lines: dict[str, Score]
    pictures: dict[str, Score] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary."""
        plain = {"lines": self.lines["exact_match"].count, **scores_to_json(self.lines)}
        if self.pictures:
            plain["pictures"] = self.pictures[LATENT_DISTANCE].count
        return {**plain, **scores_to_json(self.pictures)}


@dataclass(frozen=True)
class LineScores:
    """The lines of a set of pictures: of one row, of the originals or of their reconstructions.

    scores: `exact_match`, `ned` and `structure` over all lines, by name. text_distance: sliced Wasserstein distance of
    the lines to the reference row's, in what an OCR engine sees. groups: by 'language ...' and 'height ...'.
    """

    scores: dict[str, Score]
    groups: dict[str, GroupScores]
    text_distance: Score = Score(None, NO_INTERVAL)

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary; None for what was not measured."""
        return {
            **GroupScores(self.scores).to_json(),
            **scores_to_json({TEXT_DISTANCE: self.text_distance}),
            "groups": {name: group.to_json() for name, group in self.groups.items()},
        }


@dataclass(frozen=True)
class NetworkScores:
    """Metrics of networks that the user brings (`distill.evaluation.image_networks`); None where not asked for."""

    clip_score: float | None = None
    clip_score_95: Interval | None = None
    fid: float | None = None
    kid: float | None = None


NETWORK_COLUMNS = {"clip_score": "CLIP score", "fid": "FID", "kid": "KID"}
"""Columns of the tables by the field of NetworkScores."""


@dataclass(frozen=True)
class RowScore:
    """One way of sampling, scored.

    latent_rmse: root mean square error of a picture's scaled latent to the reference row's, mean over pictures. nfe:
    UNet calls for one picture. seconds_per_image: of WriteNet, UNet and decoder, median over batches, divided by the
    batch. pictures: PICTURE_METRICS and the sliced Wasserstein distance of the latents, by name.
    """

    key: str
    role: str
    sampler: str
    steps: int
    guidance: float
    nfe: int
    latent_rmse: Score
    seconds_per_image: float
    pictures: dict[str, Score]
    lines: LineScores
    networks: NetworkScores = NetworkScores()

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary."""
        named = ("key", "role", "sampler", "steps", "guidance", "nfe")
        return {
            **{name: getattr(self, name) for name in named},
            **scores_to_json({"latent_rmse": self.latent_rmse}),
            "seconds_per_image": self.seconds_per_image,
            **scores_to_json(self.pictures),
            **self.lines.to_json(),
            **to_json(self.networks),
        }

    def metrics(self) -> dict[str, float]:
        """For the tracker, by 'KEY/METRIC': every finite value."""
        scores = {
            "latent_rmse": self.latent_rmse,
            **self.pictures,
            **self.lines.scores,
            TEXT_DISTANCE: self.lines.text_distance,
        }
        values = {name: score.value for name, score in scores.items()}
        values |= {"seconds_per_image": self.seconds_per_image}
        values |= {name: getattr(self.networks, name) for name in NETWORK_COLUMNS}
        return {
            f"{self.key}/{name}": float(value)
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        }


@dataclass(frozen=True)
class PairedComparison:
    """Is `row` nearer to the reference than `other`, picture by picture (same start noise)?

    rmse_difference: mean of rmse(row) - rmse(other), below 0 where `row` is nearer. wins: share of pictures in which it
    is.
    """

    row: str
    other: str
    rmse_difference: float
    rmse_difference_95: Interval
    wins: float


def mean_interval(values: Sequence[float], weights: Sequence[float] | None, resamples: int, seed: int) -> Interval:
    """95 % percentile bootstrap interval (Efron 1979) of sum(values) / sum(weights); weights default to ones.

    values[i] and weights[i] belong to one picture and are drawn together: for a rate over lines, values are a
    picture's hits and weights its lines. Draws without any weight are left out. NaN where nothing was measured.
    """
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, dtype=np.float64)
    assert value.shape == weight.shape and value.ndim == 1
    if weight.sum() == 0 or not np.isfinite(value).all():
        return NO_INTERVAL
    picks = numpy_rng(seed, 0, 0, "bootstrap").integers(0, len(value), (resamples, len(value)))
    sums, total = (of_pictures[picks].sum(axis=1) for of_pictures in (value, weight))
    low, high = np.percentile(sums[total > 0] / total[total > 0], [2.5, 97.5])
    return (float(low), float(high))


def picture_mean(values: Sequence[float], resamples: int, seed: int) -> Score:
    """The mean of one value a picture; NaN of no picture."""
    mean = float(np.mean(values)) if values else math.nan
    return Score(mean, mean_interval(values, None, resamples, seed), len(values))


def line_mean(values: Sequence[Sequence[float]], resamples: int, seed: int) -> Score:
    """The mean over lines, given picture by picture; NaN of no line."""
    sums, lines = [float(sum(picture)) for picture in values], [float(len(picture)) for picture in values]
    count = int(sum(lines))
    return Score(sum(sums) / count if count else math.nan, mean_interval(sums, lines, resamples, seed), count)


def compare_pairs(
    row: str, errors: Sequence[float], other: str, other_errors: Sequence[float], resamples: int, seed: int
) -> PairedComparison:
    """Compares two rows' errors, one entry a picture."""
    difference = np.asarray(errors) - np.asarray(other_errors)
    return PairedComparison(
        row=row,
        other=other,
        rmse_difference=float(difference.mean()),
        rmse_difference_95=mean_interval(difference.tolist(), None, resamples, seed),
        wins=float((difference < 0).mean()),
    )


def scores_to_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Every value by its name, and its interval by that name with `_95`."""
    plain: dict[str, Any] = {}
    for name, score in scores.items():
        plain |= {name: to_json(score.value), f"{name}_95": to_json(score.interval)}
    return plain


def to_json(value: Any) -> Any:
    """A (nested) dataclass as what JSON can hold: dictionaries and lists; numbers that are not finite become None."""
    if hasattr(value, "__dataclass_fields__"):
        return to_json(asdict(value))
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
