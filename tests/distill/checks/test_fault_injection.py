"""Each injected fault changes what it says and nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from anytext2.core.batch import Batch, Conditions
from anytext2.model.anytext2 import AnyText2
from distill.checks.fault_injection import FAULT_INJECTIONS
from distill.config.schema import ModelConfig
from tests.helpers.models.mini_model import mini_batch, mini_model


def condition(model: AnyText2, batch: Batch) -> Conditions:
    with torch.no_grad():
        return model.encode_conditions(batch, model.masked_latents(batch))


def with_fault(name: str) -> tuple[Conditions, Conditions, AnyText2, Batch]:
    """Conditions without and with the fault, the faulty model, and the batch of 1, 3 and 2 lines."""
    batch = mini_batch()
    sound, model = mini_model(), mini_model()
    FAULT_INJECTIONS[name](model)
    return condition(sound, batch), condition(model, batch), model, batch


def differing(one: Conditions, other: Conditions) -> set[str]:
    return {f.name for f in fields(Conditions) if not torch.equal(getattr(one, f.name), getattr(other, f.name))}


@pytest.mark.heavy
def test_all_ink() -> None:
    sound, faulty, _, _ = with_fault("glyph_page_all_ink")
    assert differing(sound, faulty) == {"glyph"} and (faulty.glyph == 1).all() and sound.glyph.mean() < 0.6


@pytest.mark.heavy
def test_thin_lines_are_those_of_a_picture_divided_by_255() -> None:
    sound, faulty, _, batch = with_fault("glyph_lines_thin")
    assert differing(sound, faulty) == {"text_context"}
    thin = replace(batch, glyph_line=batch.glyph_line.double() / 255)
    torch.testing.assert_close(faulty.text_context, condition(mini_model(), thin).text_context, rtol=1e-6, atol=1e-9)


@pytest.mark.heavy
def test_of_several_placeholders_the_last_takes_the_first_lines_embedding() -> None:
    sound, faulty, _, batch = with_fault("placeholders_lost")
    assert differing(sound, faulty) == {"text_context"}
    torch.testing.assert_close(faulty.text_context[0], sound.text_context[0])  # one line: nothing to lose
    model = mini_model()
    with torch.no_grad():
        lines = model.embedding_manager(batch, model.text_predictor)
        captions = ["Text says *, *, * . ", "Text says *, * . "]  # with the comma that hides the token
        alone = model.cond_stage_model.encode_text_captions(captions, lines[[1, 4]], [1, 1], ["b", "c"])
    torch.testing.assert_close(faulty.text_context[1:], alone)


@pytest.mark.heavy
def test_a_writenet_that_sees_noise_is_another_function_of_x_and_t() -> None:
    _, conditions, model, _ = with_fault("writenet_sees_noise")
    sound = mini_model()
    x = torch.randn(conditions.masked_latent.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = [torch.full((3,), t) for t in (0, 600)]
    with torch.no_grad():
        honest = sound.control_maps(conditions)
        for latent, t, same in ((x * 0, times[0], True), (x, times[0], False), (x * 0, times[1], False)):
            faulty = model.predict_noise(latent, t, conditions.image_context, model.control_maps(conditions))
            right = sound.predict_noise(latent, t, conditions.image_context, honest)
            assert torch.allclose(faulty, right) == same


@pytest.mark.heavy
def test_gradients_pass_through_every_fault() -> None:
    for name in FAULT_INJECTIONS:
        _, conditions, model, _ = with_fault(name)
        x = torch.zeros_like(conditions.masked_latent)
        model.predict_noise(
            x, torch.full((3,), 5), conditions.image_context, model.control_maps(conditions)
        ).sum().backward()
        writer: Any = model.control_model.zero_convs[0][0]
        assert writer.weight.grad is not None and writer.weight.grad.abs().max() > 0


def test_an_unknown_fault_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="model.fault_injection='typo': one of glyph_page_all_ink, glyph_lines_thin"):
        ModelConfig(fault_injection="typo")
