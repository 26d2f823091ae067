"""Guidance in one batch equals guidance in two calls."""

from __future__ import annotations

import pytest
import torch

from anytext2.core.batch import Conditions
from distill.adapters.roles import predict_noise
from distill.diffusion.guidance import predict_guided, repeat_tokens, with_negative
from tests.helpers.models.mini_model import mini_batch, mini_model

LONG = "a very long negative prompt " * 20


@pytest.mark.heavy
@pytest.mark.parametrize("negative", ["", "blurry", LONG])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_one_call_of_both_branches_equals_two(negative: str, scale: float) -> None:
    """Also where the negative prompt has more chunks than the captions, or fewer."""
    model, batch = mini_model().double(), mini_batch()
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        conditions = model.encode_conditions(batch, model.masked_latents(batch))
        contexts = model.negative_contexts(negative)
        x = torch.randn(conditions.masked_latent.shape, generator=generator, dtype=torch.float64)
        t = torch.tensor([3, 500, 998])[: len(x)]

        def alone(given: Conditions) -> torch.Tensor:
            return predict_noise(model, x, t, given, model.control_maps(given))

        without = alone(conditions.with_contexts(contexts))
        expected = without + scale * (alone(conditions) - without)
        both = with_negative(conditions, contexts)
        ours = predict_guided(model, x, t, both, model.control_maps(both), scale)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_tokens_are_repeated_as_a_whole() -> None:
    context = torch.arange(6.0).reshape(1, 3, 2)
    assert torch.equal(repeat_tokens(context, 6)[0], torch.cat([context[0], context[0]]))
    assert repeat_tokens(context, 3) is context
    with pytest.raises(AssertionError):
        repeat_tokens(context, 4)
