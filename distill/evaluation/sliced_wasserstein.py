"""Sliced Wasserstein distance between two sets of pictures, in their latents. It needs no network of its own.

Shape legend: N pictures, P points of a picture, D dimensions of a point, S directions, K knots, C channels, h/w latent
cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.rng import numpy_rng, torch_generator

PATCH = 3
PROJECTIONS = 256
KNOTS = 512
INTERVAL_PROJECTIONS = 64
"""Directions of which an interval is estimated. Fewer will do: resamples differ in pictures, not in directions."""

_KNOT_CANDIDATES = 2**11  # points of each set among which the knots are chosen


class SlicedWasserstein:
    """Sliced Wasserstein-1 distance (Rabin et al. 2011) between two sets of points that belong to the same N pictures.

    first, second: one tensor [P, D] for each picture, of equal shapes (P may differ between pictures and be 0). Along
    each of PROJECTIONS random directions the distance of two sets of numbers is the area between their cumulative
    distributions (Vallender 1974). These are counted for each picture between KNOTS of the pooled points, once; the
    distance of any selection or resample of pictures is then a product with that table, exact up to KNOTS points.
    Raises ValueError where the shapes differ.
    """

    def __init__(self, first: Sequence[Tensor], second: Sequence[Tensor], seed: int = 0) -> None:
        shapes = [[tuple(points.shape) for points in side] for side in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"sets of points of shapes {shapes[0]} and {shapes[1]}: must be equal")
        assert first, "a distance needs pictures"
        directions = torch.randn(first[0].shape[1], PROJECTIONS, generator=torch_generator(seed, 0, 0, "projections"))
        directions = directions / directions.norm(dim=0)
        knots = _knots([_subsampled(torch.cat(list(side)) @ directions) for side in (first, second)])
        self._gaps = knots.diff(dim=1)
        between = (knots[:, :-1] + self._gaps / 2).contiguous()  # where rounding cannot move a point past a knot
        differences = [
            _cumulative_counts(one @ directions, between) - _cumulative_counts(other @ directions, between)
            for one, other in zip(first, second, strict=True)
        ]
        self._differences = torch.stack(differences)  # N, S, K - 1
        self._points = torch.tensor([len(points) for points in first], dtype=torch.float32)
        self._seed = seed

    def value(self, chosen: Sequence[bool] | None = None) -> float:
        """The distance over the chosen pictures (default: all); NaN where they have no point."""
        weights = torch.ones(len(self._points)) if chosen is None else torch.tensor(chosen, dtype=torch.float32)
        return float(self._distances(weights[None], PROJECTIONS)[0])

    def interval(self, resamples: int, chosen: Sequence[bool] | None = None) -> tuple[float, float]:
        """95 % bootstrap interval of `value`: pictures are drawn again, each with its points of both sets.

        The distance of a resample is too large on average, because it is convex in the weights of the pictures; the
        percentiles are moved down by that.
        """
        which = np.arange(len(self._points)) if chosen is None else np.flatnonzero(chosen)
        value = self.value(chosen)
        if not np.isfinite(value):
            return (float("nan"), float("nan"))
        rng = numpy_rng(self._seed, 0, 0, "bootstrap of a distance")
        picks = which[rng.integers(0, len(which), (resamples, len(which)))]
        weights = torch.stack([torch.from_numpy(np.bincount(pick, minlength=len(self._points))) for pick in picks])
        found = self._distances(weights.float(), INTERVAL_PROJECTIONS).numpy()
        found = found[np.isfinite(found)]
        low, high = np.percentile(found, [2.5, 97.5]) - found.mean() + value
        return (max(0.0, float(low)), float(high))

    def _distances(self, weights: Tensor, projections: int) -> Tensor:
        """[R, N] -> float32 [R]."""
        table = self._differences[:, :projections].flatten(1)
        gaps = self._gaps[:projections].flatten()
        areas = [((part @ table).abs() @ gaps) for part in weights.split(32)]
        return torch.cat(areas) / (weights @ self._points) / min(projections, len(self._gaps))


def latent_patch_distance(first: Tensor, second: Tensor, seed: int = 0) -> SlicedWasserstein:
    """The sliced Wasserstein distance of the patches of two sets of latents [N, C, h, w], in units of the latents.

    Every patch of PATCH x PATCH cells, all channels, is a point: as in Karras et al. 2018 (section 5), patches describe
    texture and strokes. Raises ValueError where the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"sets of latents of shapes {tuple(first.shape)} and {tuple(second.shape)}: must be equal")
    return SlicedWasserstein(list(_patches(first)), list(_patches(second)), seed)


def _patches(latents: Tensor) -> Tensor:
    """[N, C, h, w] -> float32 [N, (h - 2) * (w - 2), C * 9] on the CPU."""
    return F.unfold(latents.detach().float().cpu(), PATCH).transpose(1, 2)


def _subsampled(points: Tensor) -> Tensor:
    return points[:: max(1, -(-len(points) // _KNOT_CANDIDATES))]


def _knots(sides: Sequence[Tensor]) -> Tensor:
    """Where the distributions of [M, S] are counted, ascending [S, K]: all points, or evenly spread ones by rank."""
    pooled = torch.cat(list(sides)).T.contiguous().sort(dim=1).values
    ranks = torch.linspace(0, pooled.shape[1] - 1, min(KNOTS, pooled.shape[1])).round().long()
    return pooled[:, ranks].contiguous()


def _cumulative_counts(projected: Tensor, knots: Tensor) -> Tensor:
    """How many of the points [P, S] are below each knot, float32 [S, K]."""
    ascending = projected.T.contiguous().sort(dim=1).values
    return torch.searchsorted(ascending, knots, right=True).float()
