"""Coefficients of the columns of two deltas, so that both can be added with less interference.

After ZipLoRA (Shah et al. 2023): each column of each delta (an input of the layer) gets a coefficient, which are chosen
so that both adapters' outputs are kept and the columns that both write into overlap less. ZipLoRA learns them with
pictures; here the inputs are taken as white, for which the optimum can be written down.

Shape legend: D inputs, E outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

OVERLAP_WEIGHT = 1.0
"""Weight of the overlap; with 2 the loss would have no minimum for columns that are the same."""


def zip_loss(a_ED: Tensor, b_ED: Tensor, m_D: Tensor, n_D: Tensor, weight: float = OVERLAP_WEIGHT) -> Tensor:
    """What is minimised: |(m - 1) a|^2 + |(n - 1) b|^2 + weight |<m a, n b>|, summed over the columns."""
    kept = (((m_D - 1) * a_ED) ** 2).sum() + (((n_D - 1) * b_ED) ** 2).sum()
    return kept + weight * (m_D * n_D * (a_ED * b_ED).sum(0)).abs().sum()


def column_coefficients(a_ED: Tensor, b_ED: Tensor, weight: float = OVERLAP_WEIGHT) -> tuple[Tensor, Tensor]:
    """The coefficients [D], at least 0, of the columns of both deltas for which `zip_loss` is least.

    Of each column the loss is a quadratic function of its two coefficients; its minimum solves two linear equations,
    unless a coefficient would be negative there: then it is 0, and the other one 1. weight: in [0, 2).
    """
    assert 0.0 <= weight < 2.0, weight
    overlap_D = weight / 2 * (a_ED * b_ED).sum(0).abs()
    # The overlap as a share of each column's square; columns of zeros have none.
    of_a_D, of_b_D = (overlap_D / x.square().sum(0).clamp_min(1e-300) for x in (a_ED, b_ED))
    determinant_D = 1 - of_a_D * of_b_D
    m_D, n_D = (1 - of_a_D) / determinant_D, (1 - of_b_D) / determinant_D
    one, zero = torch.ones_like(m_D), torch.zeros_like(m_D)
    return (
        torch.where(m_D < 0, zero, torch.where(n_D < 0, one, m_D)),
        torch.where(n_D < 0, zero, torch.where(m_D < 0, one, n_D)),
    )
