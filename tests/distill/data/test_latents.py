"""Latents of a training step: sampled anew, or remembered; never encoded twice when remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anytext2.core.rng import Draws
from anytext2.model.anytext2 import AnyText2
from distill.data.latents import LatentSource
from tests.helpers.models.mini_model import mini_batch, mini_model


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return mini_model()


def test_without_memory_the_posterior_is_sampled_from_the_samples_draws(model: AnyText2) -> None:
    batch = mini_batch()
    draws = Draws(0, (0,) * batch.size, batch.index)
    source = LatentSource(model, keep_in_memory=False)
    noise = draws.normal("posterior", model.latent_shape(*batch.image.shape[-2:]))
    torch.testing.assert_close(source(batch, draws), model.encode(batch.image, noise))
    later = Draws(0, (1,) * batch.size, batch.index)
    assert not torch.equal(source(batch, draws), source(batch, later))
    assert torch.equal(source(batch, draws), source(batch, draws))


def test_with_memory_the_mode_is_kept_by_sample_and_nothing_is_encoded_twice(
    model: AnyText2, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = mini_batch()
    encoded: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda image: encoded.append(len(image)) or encode(image))
    source = LatentSource(model, keep_in_memory=True)
    draws = Draws(0, (0,) * batch.size, batch.index)
    first = source(batch, draws)
    assert encoded == [batch.size]
    torch.testing.assert_close(first.float(), encode(batch.image).half().float())
    order = list(reversed(range(batch.size)))
    turned = replace(batch, image=batch.image[order], index=tuple(batch.index[row] for row in order))
    assert torch.equal(source(turned, draws), first[order]) and encoded == [batch.size]
    renamed = replace(batch, index=(batch.index[0], *(1000 + i for i in batch.index[1:])))
    source(renamed, draws)
    assert encoded == [batch.size, batch.size - 1]


def test_the_blank_picture_is_encoded_once_for_each_size(model: AnyText2, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = mini_batch()
    plain = model.masked_latents(batch)
    encoded: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda image: encoded.append(len(image)) or encode(image))
    source = LatentSource(model, keep_in_memory=False)
    for _ in range(2):
        torch.testing.assert_close(source.masked(batch), plain)
    assert encoded == [1, 1, 1], "the blank picture, and the edited row twice"
    edited = mini_batch((1, 2), (True, True))
    torch.testing.assert_close(source.masked(edited), encode(edited.masked_image))
    assert encoded[3:] == [2]
    unedited = mini_batch((1, 2), (False, False))
    torch.testing.assert_close(source.masked(unedited), encode(unedited.masked_image))
    posterior = torch.stack([encode(unedited.image)] * 2, dim=1)
    stored = replace(unedited, posterior=posterior, masked_latent=torch.ones_like(posterior[:, 0]))
    torch.testing.assert_close(source.masked(stored), model.masked_latents(stored))
    assert encoded[4:] == [1], "only by the model itself"
