from __future__ import annotations

import itertools

import pytest
import torch

from anytext2.core.batch import collate
from anytext2.core.rng import Draws
from distill.diffusion import sampling
from distill.diffusion.samplers import SAMPLERS, SamplerOptions, sample_consistency, sample_ddim, sample_phased
from distill.diffusion.sampling import (
    SamplingPreparation,
    SamplingSpec,
    prepare_sampling,
    sample_batch,
    to_pictures,
)
from distill.diffusion.schedule import NoiseSchedule
from tests.helpers.models.stub_roles import TEACHER_GAIN, StubRoles, make_sample

SCHEDULE = NoiseSchedule.scaled_linear()
ROWS = (
    SamplingSpec("teacher", "ddim", 5, 3.0),
    SamplingSpec("undistilled", "ddim", 2, 3.0),
    SamplingSpec("undistilled", "consistency", 2),
    SamplingSpec("student", "consistency", 1),
    SamplingSpec("student", "consistency", 4),
    SamplingSpec("student", "phased", 3),
    SamplingSpec("student", "trajectory", 2, gamma=0.5),
)


def scene_of(roles: StubRoles, indices: tuple[int, ...], negative_prompt: str | None = "bad"):
    return prepare_sampling(roles, collate([make_sample(i) for i in indices]), seed=7, negative_prompt=negative_prompt)


def eps(gain: float, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """The stub's prediction for the conditions `context` [B, 1, 1, 1], written out."""
    return torch.tanh(gain * x + context - context * gain + t.reshape(-1, 1, 1, 1) / 1000)


def test_rows_are_what_the_samplers_give_for_teacher_and_student():
    roles = StubRoles(difference=0.2)
    roles.model.eval()
    scene = scene_of(roles, (3, 11))
    found = {p.spec.key: p for p in sample_batch(roles, scene, ROWS, SCHEDULE)}
    draws = Draws(7, (0, 0), (3, 11))
    start = draws.normal("start_noise", (2, 4, 4))
    text = scene.batch.image.mean(dim=(1, 2, 3)).reshape(-1, 1, 1, 1)
    none = torch.full_like(text, 3.0)  # the length of the negative prompt

    def guided_teacher(x, t):
        without = eps(TEACHER_GAIN, x, t, none)
        return without + 3.0 * (eps(TEACHER_GAIN, x, t, text) - without)

    expected = sample_ddim(guided_teacher, start, 5, SCHEDULE)
    assert torch.allclose(found["teacher-ddim-5"].latent, expected, atol=1e-5)
    expected = sample_consistency(
        lambda x, t: eps(TEACHER_GAIN + 0.2, x, t, text),
        start,
        4,
        SCHEDULE,
        noise=lambda step: draws.normal(f"sampler_noise_{step}", (2, 4, 4)),
    )
    assert torch.allclose(found["student-consistency-4"].latent, expected, atol=1e-5)
    phased = sample_phased(lambda x, t: eps(TEACHER_GAIN + 0.2, x, t, text), start, 3, SCHEDULE)
    assert torch.allclose(found["student-phased-3"].latent, phased, atol=1e-5)
    assert not torch.allclose(
        found["student-consistency-4"].latent, found["undistilled-consistency-2"].latent, atol=1e-2
    )


def test_a_student_can_be_led_away_from_a_negative_prompt():
    roles = StubRoles(difference=0.2)
    roles.model.eval()
    scene = scene_of(roles, (3, 11))
    (painting,) = sample_batch(roles, scene, [SamplingSpec("student", "phased", 4, guidance=2.0)], SCHEDULE)
    text = scene.batch.image.mean(dim=(1, 2, 3)).reshape(-1, 1, 1, 1)
    none = torch.full_like(text, 3.0)  # the length of the negative prompt

    def guided_student(x, t):
        without = eps(TEACHER_GAIN + 0.2, x, t, none)
        return without + 2.0 * (eps(TEACHER_GAIN + 0.2, x, t, text) - without)

    start = Draws(7, (0, 0), (3, 11)).normal("start_noise", (2, 4, 4))
    assert torch.allclose(painting.latent, sample_phased(guided_student, start, 4, SCHEDULE), atol=1e-5)
    assert (painting.nfe, roles.model.writes, roles.model.calls) == (8, 1, 4)


def test_calls_are_counted_and_maps_made_once_a_role():
    roles = StubRoles()
    found = {p.spec.key: p.nfe for p in sample_batch(roles, scene_of(roles, (1,)), ROWS, SCHEDULE)}
    assert found == {
        "teacher-ddim-5": 10,
        "undistilled-ddim-2": 4,
        "undistilled-consistency-2": 2,
        "student-consistency-1": 1,
        "student-consistency-4": 4,
        "student-phased-3": 3,
        "student-trajectory-2": 2,
    }
    assert roles.model.calls == 5 + 2 + 2 + 1 + 4 + 3 + 2  # guided steps compute both branches in one call
    assert roles.model.writes == 3  # teacher with and without guidance, student


def test_seconds_are_of_maps_and_sampling(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(sampling, "_now", lambda device: float(next(ticks)))  # every measured stretch lasts 1
    found = {p.spec.key: p.seconds for p in sample_batch(StubRoles(), scene_of(StubRoles(), (1,)), ROWS, SCHEDULE)}
    assert found == {
        "teacher-ddim-5": 2.0,  # maps, sampling
        "undistilled-ddim-2": 2.0,  # made of maps that were there already, and would not be if it ran alone
        "undistilled-consistency-2": 2.0,
        "student-consistency-1": 2.0,
        "student-consistency-4": 2.0,
        "student-phased-3": 2.0,
        "student-trajectory-2": 2.0,
    }


def test_without_guidance_nothing_unconditional_is_computed():
    roles = StubRoles()
    scene = scene_of(roles, (1, 2), negative_prompt=None)
    assert scene.negative is None
    (painting,) = sample_batch(roles, scene, [SamplingSpec("teacher", "ddim", 3)], SCHEDULE)
    assert (painting.nfe, roles.model.writes) == (3, 1)


def test_what_no_batch_changes_is_encoded_once(monkeypatch):
    roles, encoded = StubRoles(), []
    for name in ("negative_contexts", "blank_latent"):
        original = getattr(roles.model, name)
        monkeypatch.setattr(
            roles.model, name, lambda *of, name=name, original=original: encoded.append((name, *of)) or original(*of)
        )
    prepare = SamplingPreparation(roles, 7, "bad")
    for index, size in ((1, 32), (2, 32), (3, 48)):
        batch = collate([make_sample(index, size=size)])
        alone = prepare_sampling(StubRoles(), batch, 7, "bad")
        inputs = prepare(batch)
        assert inputs.draws == alone.draws and torch.equal(
            inputs.conditions.masked_latent, alone.conditions.masked_latent
        )
    assert encoded == [("negative_contexts", "bad"), ("blank_latent", 32, 32), ("blank_latent", 48, 48)]


def test_many_pictures_are_decoded_in_several_calls(monkeypatch):
    model, sizes = StubRoles().model, []
    original = model.decode
    monkeypatch.setattr(model, "decode", lambda latent: sizes.append(len(latent)) or original(latent))
    latent = torch.randn(5, 2, 4, 4)
    whole = to_pictures(model, latent)
    monkeypatch.setattr(sampling, "DECODED_CELLS", 2 * 4 * 4)
    assert torch.equal(to_pictures(model, latent), whole) and sizes == [5, 2, 2, 1]
    monkeypatch.setattr(sampling, "DECODED_CELLS", 1)
    assert torch.equal(to_pictures(model, latent), whole) and sizes[4:] == [1] * 5


def test_a_sample_is_painted_alike_in_every_batch():
    roles = StubRoles()
    roles.model.eval()
    together = list(sample_batch(roles, scene_of(roles, (4, 9, 2)), ROWS, SCHEDULE))
    alone = list(sample_batch(roles, scene_of(roles, (9,)), ROWS, SCHEDULE))
    for many, one in zip(together, alone, strict=True):
        assert torch.allclose(many.latent[1:2], one.latent, atol=1e-6)


def test_options_reach_the_consistency_sampler():
    roles = StubRoles()
    roles.model.eval()
    rows = [SamplingSpec("student", "consistency", 3)]
    (usual,) = sample_batch(roles, scene_of(roles, (5,)), rows, SCHEDULE)
    (other,) = sample_batch(roles, scene_of(roles, (5,)), rows, SCHEDULE, SamplerOptions(solver_steps=10))
    assert not torch.allclose(usual.latent, other.latent, atol=1e-3)


def test_a_new_sampler_is_one_entry_of_the_table(monkeypatch):
    def sample_nothing(predict, x_T, n_steps, schedule, noise=None, options=None):
        return x_T * options.gamma + noise(n_steps)

    monkeypatch.setitem(SAMPLERS, "nothing", sample_nothing)
    spec = SamplingSpec("student", "nothing", 3, gamma=0.25)
    assert (spec.key, spec.label) == ("student-nothing-3", "student 3")
    (sampled,) = sample_batch(StubRoles(), scene_of(StubRoles(), (5,)), [spec], SCHEDULE)
    draws = Draws(7, (0,), (5,))
    expected = draws.normal("start_noise", (2, 4, 4)) * 0.25 + draws.normal("sampler_noise_3", (2, 4, 4))
    assert torch.equal(sampled.latent, expected)


def test_paintings_are_pictures_and_leave_the_student_active():
    roles = StubRoles(difference=0.5)
    for one in sample_batch(roles, scene_of(roles, (1, 2)), ROWS, SCHEDULE):
        assert one.image.shape == (2, 3, 32, 32) and one.image.dtype == torch.float32
        assert float(one.image.min()) >= 0.0 and float(one.image.max()) <= 1.0
        assert one.seconds > 0.0
        assert roles.model.gain.item() == pytest.approx(TEACHER_GAIN + 0.5)


@pytest.mark.parametrize(
    ("role", "sampler", "steps", "message"),
    [
        ("pupil", "ddim", 4, "role='pupil'.*student"),
        ("student", "euler", 4, "sampler='euler'.*consistency"),
        ("student", "ddim", 0, "steps=0"),
    ],
)
def test_impossible_rows_are_named(role, sampler, steps, message):
    with pytest.raises(ValueError, match=message):
        SamplingSpec(role, sampler, steps)
