"""Distance, weights and the latent loss terms, against plain formulas in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distill.losses.step_input import StepInput
from distill.losses.terms import TermInput
from distill.losses.terms.base import TermConfig
from distill.losses.terms.edges import GradientConfig
from distill.losses.terms.frequency import FocalFrequencyConfig
from distill.losses.text_mask import soft_window
from distill.objectives.distillation_loss import DistillationLoss, DistillationLossConfig
from distill.objectives.x0_regression import X0Regression, X0RegressionConfig
from tests.helpers.models.stub_model import ABAR, CELLS, SCHEDULE, SIZE, StubRoles, step_input

T = torch.tensor([999, 400, 19])


def compared(seed: int = 0, update: int = 0) -> TermInput:
    item = replace(step_input(3), update=update)
    generator = torch.Generator().manual_seed(seed)
    shape = item.latent.shape
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    return TermInput(
        values[0].requires_grad_(), values[1], values[0], values[2], values[3], T, SCHEDULE, item, StubRoles()
    )


def plain_share(item: StepInput) -> torch.Tensor:
    step = SIZE // CELLS
    boxes = (item.batch.position.sum(1, keepdim=True) > 0).double()
    return boxes.reshape(3, 1, CELLS, step, CELLS, step).mean((3, 5))


def agree(ours: torch.Tensor, plain: torch.Tensor, of: torch.Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=1e-12)
    rows = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    first, second = (torch.autograd.grad((values * rows).sum(), of, retain_graph=True)[0] for values in (ours, plain))
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["huber", "l2", "l1"])
def test_text_weight_and_min_snr_gamma(name: str) -> None:
    item = compared()
    config = DistillationLossConfig(loss=name, text_weight=5.0, min_snr_gamma=5.0)
    ours = DistillationLoss(config, SCHEDULE)(item).per_sample
    d = item.prediction - item.target
    elements = {"huber": (d**2 + 1e-6).sqrt() - 1e-3, "l2": d**2, "l1": d.abs()}[name]
    snr = torch.from_numpy(ABAR / (1 - ABAR))[T]
    plain = (elements * (1 + 5 * plain_share(item.item))).mean((1, 2, 3)) * torch.minimum(snr, torch.tensor(5.0)) / 5
    agree(ours, plain, item.prediction)
    assert snr[0] < 0.01 and snr[2] > 5, "the times must stand on both sides of gamma"


@pytest.mark.parametrize(("alpha", "windowed"), [(1.0, False), (1.0, True), (0.0, True), (2.0, False)])
def test_focal_frequency_equals_its_definition(alpha: float, windowed: bool) -> None:
    item = compared(1)
    config = DistillationLossConfig(
        loss="l2", terms={"focal_frequency": FocalFrequencyConfig(weight=0.5, alpha=alpha, windowed=windowed)}
    )
    output = DistillationLoss(config, SCHEDULE)(item)
    window = soft_window(item.item.batch, CELLS, CELLS).double() if windowed else torch.ones(())
    # The discrete Fourier transform as two matrices, of both pictures less a third that must cancel
    k = torch.arange(CELLS, dtype=torch.float64)
    angle = -2 * np.pi * torch.outer(k, k) / CELLS
    dft = torch.complex(angle.cos(), angle.sin()) / CELLS**0.5
    residual = torch.randn(item.target.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    one, other = (dft @ ((v - residual) * window).to(dft.dtype) @ dft for v in (item.prediction, item.target))
    power = (one - other).abs().square()
    size = power.detach().sqrt()
    weight = (size / size.amax((-2, -1), keepdim=True)) ** alpha
    term = (weight * power).mean((1, 2, 3))
    agree(output.per_sample, (item.prediction - item.target).square().mean((1, 2, 3)) + 0.5 * term, item.prediction)
    torch.testing.assert_close(output.report["term/focal_frequency"], term.mean().float())


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_term_weighs_sobel_by_the_boxes(soft: bool) -> None:
    item = compared(2)
    config = DistillationLossConfig(loss="l2", terms={"gradient": GradientConfig(weight=2.0, soft=soft)})
    ours = DistillationLoss(config, SCHEDULE)(item).per_sample
    d = item.prediction - item.target
    padded = torch.cat([d[..., :1], d, d[..., -1:]], -1)
    padded = torch.cat([padded[..., :1, :], padded, padded[..., -1:, :]], -2)
    h = padded[..., 2:] - padded[..., :-2]
    v = padded[..., 2:, :] - padded[..., :-2, :]
    across = (h[..., :-2, :] + 2 * h[..., 1:-1, :] + h[..., 2:, :]) / 8
    down = (v[..., :-2] + 2 * v[..., 1:-1] + v[..., 2:]) / 8
    area = soft_window(item.item.batch, CELLS, CELLS).double() if soft else plain_share(item.item)
    term = ((across.abs() * area).mean((1, 2, 3)) + (down.abs() * area).mean((1, 2, 3))) / 2
    agree(ours, d.square().mean((1, 2, 3)) + 2 * term, item.prediction)


def test_soft_windows_spread_a_box_by_two_cells_and_no_further() -> None:
    item = step_input(1)
    position = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    position[0, 0, 32:40, 32:40] = 1  # one cell of eight pixels
    window = soft_window(replace(item.batch, position=position), 8, 8)[0, 0]
    assert window.max() == 1 and window[4, 4] == 1
    edge = torch.tensor([0.25, 0.75, 1.0, 0.75, 0.25])
    torch.testing.assert_close(window[2:7, 2:7], torch.outer(edge, edge))
    assert window.sum() == window[2:7, 2:7].sum()


def test_a_term_begins_after_its_update() -> None:
    config = DistillationLossConfig(terms={"gradient": GradientConfig(weight=1.0, after=10)})
    matching = DistillationLoss(config, SCHEDULE)
    assert "term/gradient" not in matching(compared(update=9)).report
    late = matching(compared(update=10))
    assert "term/gradient" in late.report and (late.per_sample > matching(compared(update=9)).per_sample).all()


def test_the_distance_has_a_curve_of_its_own() -> None:
    terms: dict[str, Any] = {"gradient": GradientConfig(weight=0.5)}
    report = DistillationLoss(DistillationLossConfig(terms=terms), SCHEDULE)(compared()).report
    plain = DistillationLoss(DistillationLossConfig(), SCHEDULE)(compared()).report
    assert plain["distance"] == plain["loss"] == report["distance"]
    torch.testing.assert_close(report["loss"], report["distance"] + 0.5 * report["term/gradient"])


def test_objectives_pass_their_terms_on() -> None:
    terms: dict[str, Any] = {
        "gradient": GradientConfig(weight=1.0),
        "focal_frequency": FocalFrequencyConfig(weight=1.0),
    }
    report = X0Regression(X0RegressionConfig(terms=terms), SCHEDULE).loss(StubRoles(), step_input()).report
    assert {"term/gradient", "term/focal_frequency", "teacher_distance"} < set(report)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TermConfig(), "weight = 0.0: must be > 0"),
        (lambda: TermConfig(weight=1.0, after=-1), "after = -1"),
        (lambda: FocalFrequencyConfig(weight=1.0, alpha=-1.0), "alpha = -1.0"),
        (lambda: DistillationLossConfig(text_weight=-1.0), "text_weight = -1.0"),
        (lambda: DistillationLossConfig(min_snr_gamma=-1.0), "min_snr_gamma = -1.0"),
        (lambda: DistillationLossConfig(loss="l3"), "loss = 'l3': choose one of huber, l2, l1"),
    ],
)
def test_impossible_options_are_named(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
