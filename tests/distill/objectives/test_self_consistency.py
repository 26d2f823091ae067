"""Grids, solvers and targets of the consistency objectives, against plain formulas in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler

from distill.diffusion.samplers import SamplerOptions, sample_consistency, sampling_timesteps
from distill.diffusion.schedule import solver_grid
from distill.diffusion.solver import ddim_step, heun_step
from distill.losses.step_input import LossOutput, StepInput
from distill.objectives.consistency import Consistency, ConsistencyConfig
from distill.objectives.phased import Phased, PhasedConfig
from tests.helpers.models.stub_model import ABAR, SCHEDULE, Stub, StubRoles, coefficients, step_input


def plain_guided(model: Stub, item: StepInput, z: torch.Tensor, t: torch.Tensor, w: float) -> torch.Tensor:
    """The teacher's guided eps."""
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))
    uncond = cond.with_contexts(model.negative_contexts())
    model.adapters = False
    with torch.no_grad():
        eps_c = model.predict_noise(z, t, cond.image_context, model.control_maps(cond))
        eps_u = model.predict_noise(z, t, uncond.image_context, model.control_maps(uncond))
    model.adapters = True
    return eps_c + w * (eps_c - eps_u)


def plain_heun(model: Stub, item: StepInput, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """One step of Heun's method for d xbar / d sigmabar = eps."""
    (a, b), (a_s, b_s) = coefficients(t), coefficients(s)
    first = plain_guided(model, item, z, t, 3.0)
    euler = a_s * (z / a + (b_s / a_s - b / a) * first)
    second = plain_guided(model, item, euler, s, 3.0)
    return a_s * (z / a + (b_s / a_s - b / a) * 0.5 * (first + second))


def noised(item: StepInput, purpose: str, t: torch.Tensor) -> torch.Tensor:
    z0 = item.latent.clone()
    alpha, sigma = coefficients(t)
    return alpha * z0 + sigma * item.draws.normal(f"{purpose}/noise", z0.shape[1:]).double()


def student_eps(model: Stub, item: StepInput, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))
    return model.predict_noise(z, t, cond.image_context, model.control_maps(cond))


def lcm_f(z: torch.Tensor, t: torch.Tensor, eps: torch.Tensor, data: float = 0.5, scaling: float = 10) -> torch.Tensor:
    """c_skip z + c_out x0 with LCM's boundary scalings."""
    a, b = coefficients(t)
    tau = scaling * t.double().reshape(-1, 1, 1, 1)
    return data**2 / (tau**2 + data**2) * z + tau / (tau**2 + data**2) ** 0.5 * (z - b * eps) / a


def assert_same(ours: LossOutput, plain: torch.Tensor, model: Stub) -> None:
    """In value and gradient. plain: [B], the formula's."""
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-9, atol=1e-12)
    weights = list(model.parameters())
    both = (torch.autograd.grad(loss, weights) for loss in (ours.loss, plain.mean()))
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "steps", "scalings"),
    [
        ("uniform", 50, (0.5, 10.0)),
        ("coarse", 4, (0.5, 10.0)),
        ("coarse", 8, (0.7, 0.05)),
        ("karras", 12, (300.0, 1.0)),
    ],
)
def test_consistency_on_every_grid_with_heun(grid: str, steps: int, scalings: tuple[float, float]) -> None:
    roles, item = StubRoles(), step_input(8, seed=11)
    config = ConsistencyConfig(w_min=3, w_max=3, grid=grid, solver_steps=steps, solver="heun", loss="l2")
    config.sigma_data, config.timestep_scaling = scalings
    ours = Consistency(config, SCHEDULE).loss(roles, item)
    times = solver_grid(grid, steps, SCHEDULE)
    t = times[item.draws.integers("consistency/t", 0, steps)]
    s = torch.tensor([max([0, *(int(g) for g in times if g <= time - 20)]) for time in t.tolist()])
    z_t = noised(item, "consistency", t)
    with torch.no_grad():
        z_s = plain_heun(roles.model, item, z_t, t, s)
        target = lcm_f(z_s, s, student_eps(roles.model, item, z_s, s), *scalings)
    prediction = lcm_f(z_t, t, student_eps(roles.model, item, z_t, t), *scalings)
    assert_same(ours, (prediction - target).square().mean((1, 2, 3)), roles.model)


def test_target_from_teacher_takes_the_guided_teachers_word() -> None:
    roles, item = StubRoles(), step_input(8, seed=2)
    config = ConsistencyConfig(w_min=3, w_max=3, target_from_teacher=True, loss="l2")
    ours = Consistency(config, SCHEDULE).loss(roles, item)
    t = 20 * item.draws.integers("consistency/t", 0, 50) + 19
    s = (t - 20).clamp_min(0)
    z_t = noised(item, "consistency", t)
    (a, b), (a_s, b_s) = coefficients(t), coefficients(s)
    eps = plain_guided(roles.model, item, z_t, t, 3.0)
    z_s = a_s * (z_t - b * eps) / a + b_s * eps
    target = lcm_f(z_s, s, plain_guided(roles.model, item, z_s, s, 3.0))
    prediction = lcm_f(z_t, t, student_eps(roles.model, item, z_t, t))
    assert_same(ours, (prediction - target).square().mean((1, 2, 3)), roles.model)


class AverageRoles(StubRoles):
    """The target is another adapter: twice the student's."""

    @contextmanager
    def target(self) -> Iterator[None]:
        layers = (self.model.unet_lora, self.model.writer_lora)
        with torch.inference_mode():
            for layer in layers:
                layer.weight.data *= 2
            yield
            for layer in layers:
                layer.weight.data /= 2


def test_target_ema_asks_the_average_through_its_own_writer() -> None:
    roles, item = AverageRoles(), step_input(6, seed=3)
    ours = Phased(PhasedConfig(w_min=3, w_max=3, target_ema=True, loss="l1"), SCHEDULE).loss(roles, item)
    t = 20 * item.draws.integers("phased/t", 0, 50) + 19
    edge = torch.tensor([max(e for e in (0, 259, 499, 759) if e < time) for time in t.tolist()])
    s = torch.maximum(t - 20, edge)
    assert (s > edge).any()
    z_t = noised(item, "phased", t)
    (a, b), (a_s, b_s), (a_e, b_e) = coefficients(t), coefficients(s), coefficients(edge)
    eps = plain_guided(roles.model, item, z_t, t, 3.0)
    z_s = a_s * (z_t - b * eps) / a + b_s * eps
    with roles.target():
        other = student_eps(roles.model, item, z_s, s)
    target = (a_e * (z_s - b_s * other) / a_s + b_e * other).clone()
    eps = student_eps(roles.model, item, z_t, t)
    assert_same(ours, (a_e * (z_t - b * eps) / a + b_e * eps - target).abs().mean((1, 2, 3)), roles.model)


def test_heun_is_of_the_second_order_and_equals_diffusers() -> None:
    """d xbar / d sigmabar = xbar has the solution xbar = exp(sigmabar)."""

    def error(n: int, heun: bool) -> float:
        bars = torch.linspace(2.0, 0.5, n + 1, dtype=torch.float64)
        alphas = 1 / (1 + bars.square()).sqrt()
        x = bars[0].exp() * alphas[0]
        for now, then, a, a_s in zip(bars, bars[1:], alphas, alphas[1:], strict=False):
            eps = x / a
            end = ddim_step(x / a - now * eps, eps, a_s, a_s * then)
            x = heun_step(x, eps, end / a_s, (a, a * now), (a_s, a_s * then)) if heun else end
        return abs(float(x / alphas[-1] - bars[-1].exp()))

    assert 3.5 < error(20, True) / error(40, True) < 4.5
    assert 1.7 < error(20, False) / error(40, False) < 2.3

    reference = HeunDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    reference.set_timesteps(5)
    assert reference.timesteps[0] == 999
    now, then = (float(s) for s in reference.sigmas[[0, 1]].double())
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps, late = torch.tanh(x), torch.sin(x)
    half = reference.step(eps, reference.timesteps[0], x * now).prev_sample
    theirs = reference.step(late, reference.timesteps[1], half).prev_sample
    alpha = [1 / (1 + bar**2) ** 0.5 for bar in (now, then)]
    pairs = [
        (torch.tensor(a, dtype=x.dtype), torch.tensor(a * bar, dtype=x.dtype))
        for a, bar in zip(alpha, (now, then), strict=True)
    ]
    ours = heun_step(x * now * alpha[0], eps, late, *pairs) / alpha[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_karras_grid_is_even_in_the_root_of_sigma() -> None:
    sigmas = ((1 - ABAR) / ABAR) ** 0.5
    grid = solver_grid("karras", 10, SCHEDULE)
    assert grid[-1] == 999 and (grid.diff() > 0).all() and grid[0] > 0
    ramp = np.linspace(sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7), 11)[1:] ** 7
    assert np.abs(sigmas[grid.numpy()] / ramp - 1).max() < 0.06  # half a step of the table, where it is coarsest
    dense = solver_grid("karras", 250, SCHEDULE)
    assert len(set(dense.tolist())) == 250 and dense[-1] == 999


def test_coarse_grids_are_sampled_entry_by_entry() -> None:
    asked: list[int] = []

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked.append(int(t[0]))
        return x * 0

    noise = torch.zeros(1, 1, 2, 2)
    sample_consistency(predict, noise, 4, SCHEDULE, lambda step: noise, SamplerOptions(4, "coarse"))
    assert asked == [999, 599, 299, 50]
    assert sampling_timesteps(2, solver_grid("coarse", 8, SCHEDULE)).tolist() == [999, 599]
    for steps in (4, 6, 8, 16):
        grid = solver_grid("coarse", steps, SCHEDULE)
        assert len(grid) == steps and grid[0] == 50 and grid[-1] == 999 and (grid.diff() > 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": "square"}, "grid = 'square': choose one of uniform, karras, coarse"),
        ({"solver": "rk4"}, "solver = 'rk4': choose one of ddim, heun"),
        ({"target_ema": True, "target_from_teacher": True}, "target_ema = true"),
        ({"grid": "coarse"}, "solver_steps = 50: coarse grids have 4, 6, 8, 16"),
        ({"grid": "karras", "solver_steps": 300}, "solver_steps = 300: a karras grid has 2 to 250"),
    ],
)
def test_grids_and_solvers_that_there_are_not(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Consistency(ConsistencyConfig(**options), SCHEDULE)
