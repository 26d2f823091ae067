from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from anytext2.core.batch import Batch
from distill.evaluation.image_metrics import background_similarity, psnr, rmse, ssim_map


def batch_with(position: torch.Tensor) -> Batch:
    return cast(Batch, SimpleNamespace(position=position))


def pictures(count: int = 1, size: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_ssim_is_that_of_the_formula() -> None:
    """Against Wang et al. 2004, equation 13, written out window by window."""
    one, other = pictures(2, 16)[:, :1]
    other = 0.6 * one + 0.4 * other
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = ssim_map(one[None], other[None])[0, 0]
    assert found.shape == (6, 6)
    for y, x in ((0, 0), (2, 5), (5, 1)):
        a, b = (picture[0, y : y + 11, x : x + 11].numpy() for picture in (one, other))
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        cov = (window * (a - mean_a) * (b - mean_b)).sum()
        wanted = ((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)) / (
            (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
        )
        assert float(found[y, x]) == pytest.approx(wanted, abs=1e-12)


def test_only_what_no_text_touches_counts() -> None:
    clean = pictures()
    position = torch.zeros(1, 2, 40, 40, dtype=torch.uint8)
    position[:, 0, 0:12, 0:20] = 1
    written = clean.clone()
    written[..., 0:12, 0:20] = 1.0
    batch = batch_with(position)
    assert background_similarity(written, clean, batch).item() == pytest.approx(1.0, abs=1e-5)
    elsewhere = clean.clone()
    elsewhere[..., 30:, 30:] = 1.0
    assert background_similarity(elsewhere, clean, batch).item() < 0.97


def test_blur_lowers_it_and_no_room_is_nan() -> None:
    clean = pictures(2)
    blurred = torch.nn.functional.avg_pool2d(clean, 3, stride=1, padding=1, count_include_pad=False)
    position = torch.zeros(2, 1, 40, 40, dtype=torch.uint8)
    position[1] = 1
    first, second = background_similarity(blurred, clean, batch_with(position)).tolist()
    assert first < 0.5 and math.isnan(second)


def test_rmse_and_psnr_of_known_differences():
    reference = torch.zeros(2, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    other[1, 0, 0, 0] = 1.0
    assert rmse(other, reference).tolist() == pytest.approx([0.1, math.sqrt(1 / 48)])
    assert psnr(other, reference).tolist() == pytest.approx([20.0, 10 * math.log10(48)], abs=1e-5)
    assert psnr(reference, reference).tolist() == [math.inf, math.inf]
