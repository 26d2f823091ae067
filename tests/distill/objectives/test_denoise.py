"""The denoise objective: its formula, scheduled sampling, ignored text and dropped contexts."""

from __future__ import annotations

import pytest
import torch

from anytext2.core.batch import collate
from distill.losses.text_mask import not_ignored, text_share
from distill.objectives.denoise import Denoise, DenoiseConfig
from tests.helpers.models.stub_model import (
    CELLS,
    SCHEDULE,
    SIZE,
    StubRoles,
    coefficients,
    parameter_gradients,
    sample,
    step_input,
)


@pytest.mark.parametrize(("text_weight", "cap", "gamma"), [(0.0, 1.0, 0.0), (2.0, 1.0, 0.1), (2.0, 4.0, 0.3)])
def test_denoise_equals_the_formula_in_value_and_gradient(text_weight: float, cap: float, gamma: float) -> None:
    roles, item = StubRoles(), step_input()
    config = DenoiseConfig(text_weight=text_weight, velocity_cap=cap, input_perturbation=gamma)
    ours = Denoise(config, SCHEDULE).loss(roles, item)
    model, z0, batch = roles.model, item.latent.clone(), item.batch
    t = item.draws.integers("denoise/t", 0, 1000)
    noise = item.draws.normal("denoise/noise", z0.shape[1:]).double()
    alpha, sigma = coefficients(t)
    cond = model.encode_conditions(batch, model.masked_latents(batch))
    seen = noise + gamma * item.draws.normal("denoise/perturbation", z0.shape[1:]).double()
    eps = model.predict_noise(alpha * z0 + sigma * seen, t, cond.image_context, model.control_maps(cond))
    step = SIZE // CELLS
    inverse = batch.inverse_mask[:, :, ::step, ::step].double()  # nearest: the first pixel of each cell
    boxes = (batch.position.sum(1, keepdim=True) > 0).double()
    inside = boxes.reshape(3, 1, CELLS, step, CELLS, step).mean((3, 5))
    plain = ((eps - noise).square() * (1 - inverse) * (1 + text_weight * inside)).mean((1, 2, 3))
    plain = plain * (1 / alpha.square()).clamp_max(cap).flatten()
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        parameter_gradients(ours.loss, model), parameter_gradients(plain.mean(), model), rtol=1e-6, atol=1e-9
    )


def test_scheduled_sampling_trains_on_the_models_own_steps() -> None:
    roles, item = StubRoles(), step_input(8)
    config = DenoiseConfig(rollout=0.5, rollout_reach=300, velocity_cap=4.0)
    ours = Denoise(config, SCHEDULE).loss(roles, item)
    model, z0, draws = roles.model, item.latent.clone(), item.draws
    t, noise = draws.integers("denoise/t", 0, 1000), draws.normal("denoise/noise", z0.shape[1:]).double()
    cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))
    start = (t + draws.integers("denoise/reach", 1, 301)).clamp_max(999)
    rolled = draws.uniform("denoise/rollout", 0, 1) < 0.5
    assert 2 <= rolled.sum() <= 6 and (start == 999).any(), "the seed must roll some, and reach the top"
    (a, b), (a_up, b_up) = coefficients(t), coefficients(start)
    with torch.no_grad():
        above = a_up * z0 + b_up * noise
        own = model.predict_noise(above, start, cond.image_context, model.control_maps(cond))
        landed = a * (above - b_up * own) / a_up + b * own
    which = rolled.reshape(-1, 1, 1, 1)
    noisy = torch.where(which, landed, a * z0 + b * noise)
    target = torch.where(which, (landed - a * z0) / b, noise)
    eps = model.predict_noise(noisy, t, cond.image_context, model.control_maps(cond))
    snr = (a / b).square().flatten()
    weight = (1 / a.square()).clamp_max(4).flatten() * torch.where(rolled, snr.clamp_max(5) / snr, 1.0)
    inverse = item.batch.inverse_mask[:, :, :: SIZE // CELLS, :: SIZE // CELLS].double()
    plain = ((eps - target).square() * (1 - inverse)).mean((1, 2, 3)) * weight
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        parameter_gradients(ours.loss, model), parameter_gradients(plain.mean(), model), rtol=1e-6, atol=1e-9
    )


def test_ignored_text_has_no_gradient() -> None:
    batch = collate([sample(0), sample(1)])
    allowed, inside = not_ignored(batch, CELLS, CELLS), text_share(batch, CELLS, CELLS)
    assert allowed.shape == inside.shape == (2, 1, CELLS, CELLS)
    assert allowed[0, 0, 3].tolist() == [0, 1, 1, 1] and allowed[1, 0, 3].tolist() == [0, 0, 1, 1]
    assert allowed[:, :, :3].min() == 1
    # an odd latent size is served too, where the released code insists on 64 x 64
    assert not_ignored(batch, 5, 7).shape == text_share(batch, 5, 7).shape == (2, 1, 5, 7)


def test_dropped_context_is_the_unconditional_one_for_the_drawn_samples_only() -> None:
    roles, item = StubRoles(), step_input(6)
    config = DenoiseConfig(context_dropout=0.5)
    conditions = roles.model.encode_conditions(item.batch, roles.model.masked_latents(item.batch))
    mixed = Denoise(config, SCHEDULE)._drop_context(roles.model, conditions, item)
    without = conditions.with_contexts(roles.model.negative_contexts())
    dropped = (item.draws.uniform("denoise/drop", 0, 1) < 0.5).tolist()
    assert 0 < sum(dropped) < 6, "the seed must drop some and keep some"
    for row, drop in enumerate(dropped):
        expected = without.image_context[row].expand(2, -1) if drop else conditions.image_context[row]
        assert torch.equal(mixed.image_context[row], expected)
        assert torch.equal(mixed.text_context[row], (without if drop else conditions).text_context[row])
    assert torch.equal(mixed.glyph, conditions.glyph)


def test_nothing_dropped_costs_no_unconditional_encoding() -> None:
    roles = StubRoles()
    Denoise(DenoiseConfig(), SCHEDULE).loss(roles, step_input())
    assert "negative_contexts" not in roles.model.calls
