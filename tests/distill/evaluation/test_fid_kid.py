"""FID and KID against other ways to compute them, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from distill.evaluation import fid_kid
from distill.evaluation.fid_kid import frechet_distance, kernel_distance


def vectors(seed: int, count: int, size: int = 6, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, scale, (count, size)) @ rng.normal(size=(size, size))


def by_sqrtm(first: np.ndarray, second: np.ndarray) -> float:
    covariances = [np.cov(v, rowvar=False) for v in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1])
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(shift @ shift + np.trace(covariances[0] + covariances[1]) - 2 * np.trace(root).real)


def by_loops(first: np.ndarray, second: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1.0) ** 3

    n, m = len(first), len(second)
    within = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(x, y) for x in first for y in second) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (7, 300)])
def test_fid_is_that_of_scipy_s_matrix_root(n: int, m: int) -> None:
    first, second = vectors(0, n), vectors(1, m, scale=1.5, shift=0.3)
    assert frechet_distance(first, second) == pytest.approx(by_sqrtm(first, second), rel=1e-9)


def test_fid_needs_no_full_covariance() -> None:
    # Four vectors of 50 numbers: the covariance has rank 3, where a matrix root is ill-conditioned.
    first, second = vectors(0, 4, 50), vectors(1, 5, 50)
    assert frechet_distance(first, second) == pytest.approx(by_sqrtm(first, second), rel=1e-4)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6 * float((first**2).sum()))


def test_fid_of_shifted_gaussians_is_the_squared_shift() -> None:
    first = vectors(0, 500)
    assert frechet_distance(first, first + 2.0) == pytest.approx(6 * 4.0)


def test_kid_is_the_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = vectors(0, 9), vectors(1, 13, shift=0.5)
    expected = by_loops(first, second)
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(fid_kid, "_BLOCK", 4)
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_kid_is_unbiased() -> None:
    found = [kernel_distance(*np.random.default_rng(seed).normal(size=(2, 8, 4))) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(400)


def test_one_picture_is_no_distribution() -> None:
    with pytest.raises(ValueError, match="1 and 5 pictures"):
        frechet_distance(vectors(0, 1), vectors(0, 5))
