"""Distribution matching in value and gradient against DMD's formulas in float64, and whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from distill.adapters.roles import FAKE_SCORE, STUDENT, Roles
from distill.objectives.distribution_matching import DistributionMatching, DistributionMatchingConfig
from tests.helpers.models.stub_model import SCHEDULE, StubRoles, coefficients, parameter_gradients, step_input

EDGES = [999, 759, 499, 259]


class AdapterRoles(StubRoles):
    """The fake adapter is a layer of its own, used in the student's place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.student, self.fake = self.model.unet_lora, nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        assert adapter == FAKE_SCORE
        self.model.unet_lora = self.fake
        yield
        self.model.unet_lora = self.student

    def eps(self, item, z: torch.Tensor, t: torch.Tensor, who: str) -> torch.Tensor:  # type: ignore[no-untyped-def]
        model = self.model
        cond = model.encode_conditions(item.batch, model.masked_latents(item.batch))
        if who == "real":
            uncond = cond.with_contexts(model.negative_contexts())
            with self.teacher():
                eps_c = model.predict_noise(z, t, cond.image_context, model.control_maps(cond))
                eps_u = model.predict_noise(z, t, uncond.image_context, model.control_maps(uncond))
            return (eps_c + 3.0 * (eps_c - eps_u)).clone()
        if who == FAKE_SCORE:
            with self.using(FAKE_SCORE):
                return model.predict_noise(z, t, cond.image_context, model.control_maps(cond))
        return model.predict_noise(z, t, cond.image_context, model.control_maps(cond))


def own_x0(roles: Roles, item) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The student's clean estimate, sample by sample, after its own steps from noise."""
    stage = item.draws.integers("distribution_matching/stage", 0, 4).tolist()
    start = item.draws.normal("distribution_matching/start", item.latent.shape[1:]).double()
    x = start
    rows = []
    for step, now in enumerate(EDGES):
        t = torch.full((len(stage),), now)
        (a, b) = coefficients(t)
        eps = roles.eps(item, x, t, STUDENT)
        rows.append((x - b * eps) / a)
        if step < 3:
            a_s, b_s = coefficients(torch.full((len(stage),), EDGES[step + 1]))
            x = (a_s * (x - b * eps) / a + b_s * eps).detach()
    assert len(set(stage)) > 2
    return torch.stack([rows[n][row] for row, n in enumerate(stage)])


def test_the_students_turn_follows_the_difference_of_the_scores() -> None:
    roles, item = AdapterRoles(), replace(step_input(8, seed=5), update=5)
    ours = DistributionMatching(DistributionMatchingConfig(w_min=3, w_max=3), SCHEDULE).loss(roles, item)
    x0 = own_x0(roles, item)
    t = item.draws.integers("distribution_matching/score_t", 20, 980)
    a, b = coefficients(t)
    noisy = a * x0.detach() + b * item.draws.normal("distribution_matching/score_noise", x0.shape[1:]).double()
    real, fake = ((noisy - b * roles.eps(item, noisy, t, who)) / a for who in ("real", FAKE_SCORE))
    scale = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    direction = ((fake - real) / scale).detach()
    torch.testing.assert_close(ours.per_sample, direction.square().mean((1, 2, 3)), rtol=1e-8, atol=1e-12)
    # the gradient is that of the dot product of x0 with the direction, and the fake score gets none
    plain = 2 * (x0 * direction).mean((1, 2, 3)).mean()
    torch.testing.assert_close(
        parameter_gradients(ours.loss, roles.model), parameter_gradients(plain, roles.model), rtol=1e-7, atol=1e-12
    )
    assert torch.autograd.grad(ours.loss, roles.fake.weight, allow_unused=True, retain_graph=True)[0] is None
    assert {"loss_student", "teacher_distance"} < set(ours.report)


def test_the_fakes_turn_predicts_noise_on_the_students_pictures() -> None:
    roles, item = AdapterRoles(), step_input(8, seed=5)
    ours = DistributionMatching(DistributionMatchingConfig(w_min=3, w_max=3), SCHEDULE).loss(roles, item)
    x0 = own_x0(roles, item).detach()
    t = item.draws.integers("distribution_matching/fake_t", 0, 1000)
    noise = item.draws.normal("distribution_matching/fake_noise", x0.shape[1:]).double()
    a, b = coefficients(t)
    plain = (roles.eps(item, a * x0 + b * noise, t, FAKE_SCORE) - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(ours.per_sample, plain, rtol=1e-9, atol=1e-12)
    for found, wanted in zip(
        torch.autograd.grad(ours.loss, list(roles.fake.parameters())),
        torch.autograd.grad(plain.mean(), list(roles.fake.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    assert "loss_fake" in ours.report and "loss_student" not in ours.report


def test_the_fake_score_has_its_updates_before_each_of_the_students() -> None:
    objective = DistributionMatching(DistributionMatchingConfig(fake_updates=2), SCHEDULE)
    assert [objective.trained_adapter(n) for n in range(6)] == [FAKE_SCORE, FAKE_SCORE, STUDENT] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "huber"}, "loss = 'huber': distribution matching knows l2 only"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma = 5.0"),
        ({"fake_updates": 0}, "fake_updates = 0"),
        ({"steps": 60}, "steps = 60: choose 1 to solver_steps = 50"),
        ({"grid": "square"}, "grid = 'square'"),
    ],
)
def test_impossible_options_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DistributionMatchingConfig(**options)  # type: ignore[arg-type]
