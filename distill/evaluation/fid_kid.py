"""FID and KID of two sets of feature vectors: Fréchet distance and kernel distance.

Shape legend: N, M vectors, D features.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 2048  # vectors of a block of the kernel matrix, which is never held as a whole


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two Gaussians with the means and covariances of [N, D] and [M, D] (Heusel et al. 2017).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). With centred, scaled vectors A and B the covariances are A'A
    and B'B, and the last trace is the sum of the singular values of AB', so that no root of an ill-conditioned matrix
    is needed. Biased upward for few vectors. Raises ValueError for fewer than two on a side.
    """
    _require_two(first, second)
    one, other = first.astype(np.float64), second.astype(np.float64)
    shift = one.mean(axis=0) - other.mean(axis=0)
    factors = [_covariance_factor(vectors) for vectors in (one, other)]
    traces = sum(float((factor**2).sum()) for factor in factors)
    cross = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    return float(shift @ shift) + traces - 2.0 * cross


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy under (x.y / D + 1)^3, unbiased (Bińkowski et al. 2018): KID, over all pairs.

    Published values are means over random subsets of 1000, of which this is the expectation. Its noise may be negative.
    Raises ValueError for fewer than two vectors on a side.
    """
    _require_two(first, second)
    one, other = first.astype(np.float64), second.astype(np.float64)
    n, m = len(one), len(other)
    within = (_kernel_sum(one, one) - _diagonal_sum(one)) / (n * (n - 1))
    within += (_kernel_sum(other, other) - _diagonal_sum(other)) / (m * (m - 1))
    return within - 2.0 * _kernel_sum(one, other) / (n * m)


def _covariance_factor(vectors: np.ndarray) -> np.ndarray:
    """F with F'F = the covariance of [N, D], and no more than D rows."""
    centred = (vectors - vectors.mean(axis=0)) / np.sqrt(len(vectors) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    parts = (first[at : at + _BLOCK] @ second.T for at in range(0, len(first), _BLOCK))
    return float(sum(((products / first.shape[1] + 1.0) ** 3).sum() for products in parts))


def _diagonal_sum(vectors: np.ndarray) -> float:
    return float((((vectors**2).sum(axis=1) / vectors.shape[1] + 1.0) ** 3).sum())


def _require_two(first: np.ndarray, second: np.ndarray) -> None:
    if min(len(first), len(second)) < 2:
        raise ValueError(f"FID and KID of {len(first)} and {len(second)} pictures: at least 2 on each side")
