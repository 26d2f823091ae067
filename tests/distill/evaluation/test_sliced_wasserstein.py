"""Sliced Wasserstein distance of points that belong to pictures: against scipy, and whether its intervals are any."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from distill.evaluation import sliced_wasserstein
from distill.evaluation.sliced_wasserstein import SlicedWasserstein, latent_patch_distance


def points(seed: int, sizes: list[int], shift: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 4, generator=generator) + shift for size in sizes]


def of_scipy(first: list[torch.Tensor], second: list[torch.Tensor], seed: int) -> float:
    directions = torch.randn(
        4, sliced_wasserstein.PROJECTIONS, generator=sliced_wasserstein.torch_generator(seed, 0, 0, "projections")
    )
    one, other = (torch.cat(side) @ (directions / directions.norm(dim=0)) for side in (first, second))
    return float(np.mean([wasserstein_distance(a, b) for a, b in zip(one.T.numpy(), other.T.numpy(), strict=True)]))


def test_pictures_may_have_any_number_of_points() -> None:
    sizes = [3, 0, 7, 1]
    first, second = points(0, sizes), points(1, sizes, 0.4)
    assert SlicedWasserstein(first, second, 3).value() == pytest.approx(of_scipy(first, second, 3), rel=1e-5)
    chosen = [True, True, False, True]
    some = [[p for p, c in zip(side, chosen, strict=True) if c] for side in (first, second)]
    found = SlicedWasserstein(first, second, 3)
    assert found.value(chosen) == pytest.approx(of_scipy(*some, 3), rel=1e-5)
    assert math.isnan(found.value([False, True, False, False]))
    assert all(math.isnan(edge) for edge in found.interval(20, [False, True, False, False]))


@pytest.mark.heavy
def test_with_more_points_than_knots_it_is_near() -> None:
    first, second = points(0, [400] * 20), points(1, [400] * 20, 0.25)
    second = [p * 1.2 for p in second]
    assert SlicedWasserstein(first, second).value() == pytest.approx(of_scipy(first, second, 0), rel=0.005)


@pytest.mark.heavy
def test_the_interval_is_as_wide_as_the_distance_varies_over_sets_of_pictures() -> None:
    # Every picture has a shift of its own, so that the distance is about the mean shift along a direction.
    def drawn(seed: int) -> SlicedWasserstein:
        generator = torch.Generator().manual_seed(seed)
        first = [torch.randn(20, 4, generator=generator) for _ in range(30)]
        return SlicedWasserstein(first, [p + 1 + torch.randn(1, generator=generator) for p in first], seed=0)

    values = [drawn(seed).value() for seed in range(40)]
    low, high = np.percentile(values, [2.5, 97.5])
    widths = []
    for seed in range(5):
        found = drawn(seed)
        interval = found.interval(300)
        assert interval[0] < found.value() < interval[1]
        widths.append(interval[1] - interval[0])
    assert np.mean(widths) == pytest.approx(high - low, rel=0.3)


def test_equal_sets_have_no_interval_to_speak_of() -> None:
    first = points(0, [5] * 8)
    found = SlicedWasserstein(first, first)
    assert found.value() == 0.0 and found.interval(50) == (0.0, 0.0)


def test_points_of_different_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        SlicedWasserstein(points(0, [3]), points(0, [2]))


def latents(seed: int, count: int = 6, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_the_mean_over_directions_of_scipy_s_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_wasserstein, "PROJECTIONS", 5)
    first, second = latents(1), latents(2, shift=0.3)
    directions = torch.randn(36, 5, generator=sliced_wasserstein.torch_generator(7, 0, 0, "projections"))
    directions /= directions.norm(dim=0)
    points = [
        torch.stack([x[n, :, i : i + 3, j : j + 3].flatten() for n in range(6) for i in range(6) for j in range(6)])
        for x in (first, second)
    ]
    each = [wasserstein_distance(*(p @ directions[:, k] for p in points)) for k in range(5)]
    assert latent_patch_distance(first, second, seed=7).value() == pytest.approx(float(np.mean(each)), rel=1e-5)


def test_equal_sets_are_at_no_distance_and_others_by_how_much_they_differ() -> None:
    first = latents(1, 16)
    assert latent_patch_distance(first, first[torch.randperm(16)]).value() == pytest.approx(0.0, abs=1e-6)
    same, wider, moved = (
        latent_patch_distance(first, x).value() for x in (latents(2, 16), latents(2, 16, 0, 1.5), latents(2, 16, 1))
    )
    assert same < 0.1 < 0.3 < wider and moved > 0.3
    blurred = torch.nn.functional.avg_pool2d(first, 3, 1, 1)
    assert latent_patch_distance(first, blurred).value() > 0.4


def test_sets_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 4, 8, 8\).*\(5, 4, 8, 8\)"):
        latent_patch_distance(latents(1), latents(1, 5))
