"""The diffusion objectives in value and gradient against plain formulas, on a stub with the model's contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from anytext2.core.batch import collate
from anytext2.core.rng import Draws
from distill.losses.step_input import StepInput
from distill.objectives import OBJECTIVES
from distill.objectives.consistency import Consistency, ConsistencyConfig
from distill.objectives.denoise import Denoise, DenoiseConfig
from distill.objectives.phased import Phased, PhasedConfig
from distill.objectives.trajectory import Trajectory, TrajectoryConfig
from distill.objectives.x0_regression import X0Regression, X0RegressionConfig
from tests.helpers.models.stub_model import (
    ABAR,
    SCHEDULE,
    Stub,
    StubRoles,
    coefficients,
    parameter_gradients,
    sample,
    step_input,
)


def plain_solve(
    model: Stub, item: StepInput, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, hops: int
) -> torch.Tensor:
    """The guided teacher's DDIM steps from t down to s, sample-wise constants and all (Luo et al. 2023, eq. 14)."""
    w = item.draws.uniform("guidance", 5.0, 15.0).double().reshape(-1, 1, 1, 1)
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))
    uncond = cond.with_contexts(model.negative_contexts())
    times = [t - (t - s) * hop // hops for hop in range(hops + 1)]
    with torch.no_grad():
        model.adapters = False
        for now, after in zip(times, times[1:], strict=False):
            (a, b), (a_s, b_s) = coefficients(now), coefficients(after)
            eps_c = model.predict_noise(z, now, cond.image_context, model.control_maps(cond))
            eps_u = model.predict_noise(z, now, uncond.image_context, model.control_maps(uncond))
            x0_c, x0_u = (z - b * eps_c) / a, (z - b * eps_u) / a
            z = a_s * (x0_c + w * (x0_c - x0_u)) + b_s * (eps_c + w * (eps_c - eps_u))
        model.adapters = True
    return z


def plain_distance(difference: torch.Tensor, use_l2: bool) -> torch.Tensor:
    if use_l2:
        return difference.square().mean((1, 2, 3))
    return ((difference.square() + 1e-6).sqrt() - 1e-3).mean((1, 2, 3))


def plain_consistency(model: Stub, item: StepInput, k: int, use_l2: bool, hops: int = 1) -> torch.Tensor:
    """Luo et al. 2023 written down once more, sample-wise constants and all, straight from the formulas."""
    z0, draws = item.latent.clone(), item.draws
    t = 20 * draws.integers("consistency/t", 0, 50) + 19
    noise = draws.normal("consistency/noise", z0.shape[1:]).double()
    alpha, sigma = coefficients(t)
    z_t = alpha * z0 + sigma * noise

    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))

    def f(z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        a, b = coefficients(time)
        tau = 10.0 * time.double().reshape(-1, 1, 1, 1)
        x0 = (z - b * model.predict_noise(z, time, cond.image_context, model.control_maps(cond))) / a
        return 0.25 / (tau**2 + 0.25) * z + tau / (tau**2 + 0.25) ** 0.5 * x0

    s = torch.where(t < k, torch.zeros_like(t), t - k)
    with torch.no_grad():
        target = f(plain_solve(model, item, z_t, t, s, hops), s)
    return plain_distance(f(z_t, t) - target, use_l2)


def plain_phased(model: Stub, item: StepInput, k: int, hops: int, edges_only: bool, use_l2: bool) -> torch.Tensor:
    """Four phases of 50 solver steps, as Wang et al. 2024 (PCM) say it."""
    z0, draws = item.latent.clone(), item.draws
    edges = [0, 259, 499, 759, 999]
    if edges_only:
        t = torch.tensor([edges[1 + i] for i in draws.integers("phased/t", 0, 4).tolist()])
    else:
        t = 20 * draws.integers("phased/t", 0, 50) + 19
    edge = torch.tensor([max(e for e in edges if e < time) for time in t.tolist()])
    s = torch.tensor([max(time - k, e) for time, e in zip(t.tolist(), edge.tolist(), strict=True)])
    alpha, sigma = coefficients(t)
    z_t = alpha * z0 + sigma * draws.normal("phased/noise", z0.shape[1:]).double()
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))

    def to_edge(z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        (a, b), (a_e, b_e) = coefficients(time), coefficients(edge)
        eps = model.predict_noise(z, time, cond.image_context, model.control_maps(cond))
        return a_e * (z - b * eps) / a + b_e * eps

    with torch.no_grad():
        target = to_edge(plain_solve(model, item, z_t, t, s, hops), s)
    return plain_distance(to_edge(z_t, t) - target, use_l2)


def plain_trajectory(model: Stub, item: StepInput, k: int, hops: int) -> torch.Tensor:
    """Zheng et al. 2024 (TCD): the student's step may end anywhere at or below s."""
    z0, draws = item.latent.clone(), item.draws
    t = 20 * draws.integers("trajectory/t", 0, 50) + 19
    s = torch.where(t < k, torch.zeros_like(t), t - k)
    share = draws.uniform("trajectory/end", 0, 1).tolist()
    ends = [[0, *(e for e in range(19, 1000, 20) if e <= time)] for time in s.tolist()]
    end = torch.tensor([those[int(u * len(those))] for u, those in zip(share, ends, strict=True)])
    alpha, sigma = coefficients(t)
    z_t = alpha * z0 + sigma * draws.normal("trajectory/noise", z0.shape[1:]).double()
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))

    def to_end(z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        (a, b), (a_e, b_e) = coefficients(time), coefficients(end)
        eps = model.predict_noise(z, time, cond.image_context, model.control_maps(cond))
        return a_e * (z - b * eps) / a + b_e * eps

    with torch.no_grad():
        target = to_end(plain_solve(model, item, z_t, t, s, hops), s)
    assert len(set(end.tolist())) > 3 and (s - end).min() == 0 and (s - end).max() > 100
    return plain_distance(to_end(z_t, t) - target, use_l2=False)


@pytest.mark.parametrize(("k", "hops"), [(20, 1), (100, 2)])
def test_trajectory_equals_the_formulas_in_value_and_gradient(k: int, hops: int) -> None:
    roles, item = StubRoles(), step_input(16, seed=5)
    ours = Trajectory(TrajectoryConfig(teacher_interval=k, teacher_steps=hops), SCHEDULE).loss(roles, item)
    plain = plain_trajectory(roles.model, item, k, hops)
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        parameter_gradients(ours.loss, roles.model),
        parameter_gradients(plain.mean(), roles.model),
        rtol=1e-8,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("k", "hops", "edges_only", "name"),
    [(20, 1, False, "huber"), (100, 3, False, "l2"), (250, 2, True, "huber"), (1000, 3, True, "l2")],
)
def test_phased_equals_the_formulas_in_value_and_gradient(k: int, hops: int, edges_only: bool, name: str) -> None:
    roles, item = StubRoles(), step_input(8, seed=3)
    config = PhasedConfig(teacher_interval=k, teacher_steps=hops, edges_only=edges_only, loss=name)
    ours = Phased(config, SCHEDULE).loss(roles, item)
    plain = plain_phased(roles.model, item, k, hops, edges_only, name == "l2")
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        parameter_gradients(ours.loss, roles.model),
        parameter_gradients(plain.mean(), roles.model),
        rtol=1e-8,
        atol=1e-12,
    )


@pytest.mark.parametrize("edges_only", [False, True])
def test_a_whole_phase_is_an_interval_beyond_every_phase(edges_only: bool) -> None:
    item = step_input(8, seed=3)
    losses = [
        Phased(PhasedConfig(teacher_interval=k, teacher_steps=2, edges_only=edges_only), SCHEDULE).loss(
            StubRoles(), item
        )
        for k in (1000, "phase")
    ]
    assert torch.equal(losses[0].per_sample, losses[1].per_sample)


@pytest.mark.parametrize("interval", [1000, "phase"])
def test_a_phase_taken_whole_needs_no_target(interval: int | str) -> None:
    roles = StubRoles()
    config = PhasedConfig(teacher_interval=interval, teacher_steps=3, edges_only=True)
    Phased(config, SCHEDULE).loss(roles, step_input())
    assert roles.model.calls.count("unet") == 3 + 1


@pytest.mark.parametrize(("k", "hops", "name"), [(20, 1, "huber"), (20, 1, "l2"), (100, 1, "huber"), (240, 3, "huber")])
def test_consistency_equals_the_formulas_in_value_and_gradient(k: int, hops: int, name: str) -> None:
    roles, item = StubRoles(), step_input()
    ours = Consistency(ConsistencyConfig(teacher_interval=k, teacher_steps=hops, loss=name), SCHEDULE).loss(roles, item)
    plain = plain_consistency(roles.model, item, k, name == "l2", hops)
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.loss, plain.mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        parameter_gradients(ours.loss, roles.model),
        parameter_gradients(plain.mean(), roles.model),
        rtol=1e-8,
        atol=1e-12,
    )


def test_consistency_computes_the_writer_once_a_role_and_the_conditions_once() -> None:
    roles = StubRoles()
    Consistency(ConsistencyConfig(), SCHEDULE).loss(roles, step_input())
    calls = roles.model.calls
    counts = {name: calls.count(name) for name in ("encode_conditions", "negative_contexts", "control_maps", "unet")}
    assert counts == {"encode_conditions": 1, "negative_contexts": 1, "control_maps": 2, "unet": 3}


def test_on_the_exact_path_only_the_boundary_is_left() -> None:
    """Data at zero, no guidance, the true noise predicted: x0 is 0 from everywhere, but f at s = 0 is the identity."""
    roles, item = StubRoles(), step_input(24, seed=4)
    item = replace(item, latent=torch.zeros_like(item.latent.clone()))

    class Exact(Stub):
        def predict_noise(self, x: torch.Tensor, t: torch.Tensor, *_: Any) -> torch.Tensor:
            return x / coefficients(t)[1]

    roles.model = Exact()
    ours = Consistency(ConsistencyConfig(w_min=0, w_max=0, loss="l2"), SCHEDULE).loss(roles, item).per_sample
    noise = item.draws.normal("consistency/noise", item.latent.shape[1:]).double()
    at_edge = item.draws.integers("consistency/t", 0, 50) == 0
    assert 0 < at_edge.sum() < 24, "the seed must draw the lowest time for some samples"
    assert ours[~at_edge].max() < 1e-12
    expected = (1 - ABAR[0]) * noise[at_edge].square().mean((1, 2, 3))
    torch.testing.assert_close(ours[at_edge], expected, rtol=1e-3, atol=0)
    assert "negative_contexts" not in roles.model.calls


def test_loss_of_a_batch_is_the_mean_over_any_split_of_it() -> None:
    for objective in (
        Consistency(ConsistencyConfig(), SCHEDULE),
        Phased(PhasedConfig(), SCHEDULE),
        Trajectory(TrajectoryConfig(), SCHEDULE),
        X0Regression(X0RegressionConfig(), SCHEDULE),
        Denoise(DenoiseConfig(context_dropout=0.5, text_weight=2.0, rollout=0.5), SCHEDULE),
    ):
        roles, whole = StubRoles(), step_input(4)
        together = objective.loss(roles, whole).per_sample
        for row in range(4):
            alone = StepInput(collate([sample(row)]), Draws(7, (0,), (row,)), whole.latent[row : row + 1].clone())
            torch.testing.assert_close(objective.loss(roles, alone).per_sample, together[row : row + 1])


def test_x0_regression_equals_the_formula_in_value_and_gradient() -> None:
    roles, item = StubRoles(), step_input()
    config = X0RegressionConfig(w_min=6.5, w_max=6.5, grid="coarse", solver_steps=4)
    ours = X0Regression(config, SCHEDULE).loss(roles, item)

    model, z0 = roles.model, item.latent.clone()
    t = torch.tensor([50, 299, 599, 999])[item.draws.integers("x0_regression/t", 0, 4)]
    noise = item.draws.normal("x0_regression/noise", z0.shape[1:]).double()
    alpha, sigma = coefficients(t)
    z_t = alpha * z0 + sigma * noise
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))
    uncond = cond.with_contexts(model.negative_contexts())
    with torch.no_grad():
        model.adapters = False
        eps_c = model.predict_noise(z_t, t, cond.image_context, model.control_maps(cond))
        eps_u = model.predict_noise(z_t, t, uncond.image_context, model.control_maps(uncond))
        model.adapters = True
    teacher = (z_t - sigma * (eps_u + 7.5 * (eps_c - eps_u))) / alpha  # the usual guidance scale is w + 1
    student = (z_t - sigma * model.predict_noise(z_t, t, cond.image_context, model.control_maps(cond))) / alpha
    plain = (student - teacher).square().mean((1, 2, 3))
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        parameter_gradients(ours.loss, model), parameter_gradients(plain.mean(), model), rtol=1e-8, atol=1e-12
    )


def test_teacher_without_guidance_gives_an_equal_student_no_loss() -> None:
    roles = StubRoles()
    for layer in (roles.model.unet_lora, roles.model.writer_lora):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    output = X0Regression(X0RegressionConfig(w_min=0, w_max=0), SCHEDULE).loss(roles, step_input())
    assert output.loss.item() == 0.0


def test_reports_are_detached_scalars() -> None:
    roles = StubRoles()
    for name in ("consistency", "phased", "trajectory", "x0_regression", "denoise"):
        objective = OBJECTIVES[name](OBJECTIVES[name].Config(), SCHEDULE)
        report = objective.loss(roles, step_input()).report
        assert set(report) > {"loss"}
        assert all(value.ndim == 0 and not value.requires_grad and value.isfinite() for value in report.values())


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        (ConsistencyConfig, {"w_min": 9.0, "w_max": 5.0}, "w_min = 9.0"),
        (ConsistencyConfig, {"loss": "l3"}, "'l3'"),
        (ConsistencyConfig, {"huber_c": 0.0}, "huber_c = 0.0"),
        (ConsistencyConfig, {"sigma_data": 0.0}, "sigma_data = 0.0"),
        (PhasedConfig, {"phases": 51}, "phases = 51.*solver_steps = 50"),
        (PhasedConfig, {"teacher_interval": 0}, "teacher_interval = 0"),
        (PhasedConfig, {"teacher_steps": 0}, "teacher_steps = 0"),
        (ConsistencyConfig, {"teacher_steps": 0}, "teacher_steps = 0"),
        (DenoiseConfig, {"context_dropout": 1.0}, "context_dropout = 1.0"),
        (DenoiseConfig, {"scope": "unet"}, "'unet'"),
        (DenoiseConfig, {"text_weight": -1.0}, "text_weight = -1.0"),
        (DenoiseConfig, {"input_perturbation": 1.0}, "input_perturbation = 1.0"),
        (DenoiseConfig, {"velocity_cap": 0.5}, "velocity_cap = 0.5"),
        (DenoiseConfig, {"rollout": 1.5}, "rollout = 1.5"),
        (DenoiseConfig, {"rollout_reach": 0}, "rollout_reach = 0"),
    ],
)
def test_impossible_options_are_named(config: type, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config(**options)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Consistency(ConsistencyConfig(solver_steps=30), SCHEDULE), "solver_steps = 30"),
        (
            lambda: Consistency(ConsistencyConfig(teacher_interval=30), SCHEDULE),
            "interval = 30.*multiple of 20",
        ),
        (lambda: Phased(PhasedConfig(solver_steps=2000), SCHEDULE), "solver steps: 2000"),
        (lambda: X0Regression(X0RegressionConfig(grid="coarse"), SCHEDULE), "solver_steps = 50.*4, 6, 8"),
    ],
)
def test_options_that_do_not_fit_the_schedule_are_named(build: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()
