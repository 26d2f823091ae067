"""Contexts of image captions from a feature cache: with any rows and chunks stored, the result is that of encoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from anytext2.cache.encoders import context_bytes, make_caption_encoder
from anytext2.core.batch import Batch, collate
from anytext2.model.text_encoder import TextEncoder, TextEncoderConfig
from tests.helpers.models.mini_model import fill, mini_model, sample

WORDS = (5, 100, 160, 0)  # 1, 2, 3 and 1 chunks of 75 tokens
CAPTIONS = tuple("word " * n + f"number {n}" for n in WORDS)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    encoder = TextEncoder(TextEncoderConfig(width=16, layers=2, heads=2))
    fill(encoder)
    return encoder.requires_grad_(False)


def with_chunks(encoder: TextEncoder, image_chunks: int) -> TextEncoder:
    other = TextEncoder(replace(encoder.cfg, image_chunks=image_chunks)).double()
    other.load_state_dict(encoder.state_dict())
    return other.requires_grad_(False)


def batch_of(encoder: TextEncoder, stored: tuple[bool, ...]) -> Batch:
    contexts = make_caption_encoder(encoder)(CAPTIONS)
    assert [len(context) for context in contexts] == [1, 2, 3, 1]
    rows = [sample(i, 1, image_caption=caption) for i, caption in enumerate(CAPTIONS)]
    given = [torch.from_numpy(context) if keep else None for context, keep in zip(contexts, stored, strict=True)]
    return collate([replace(row, image_context=context) for row, context in zip(rows, given, strict=True)])


@pytest.mark.parametrize("image_chunks", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "stored",
    [(True, True, True, True), (True, False, True, False), (False, True, False, True), (False, False, False, True)],
)
def test_stored_rows_stand_in_for_encoded_ones(
    encoder: TextEncoder, image_chunks: int, stored: tuple[bool, ...]
) -> None:
    encoder = with_chunks(encoder, image_chunks)
    batch = batch_of(encoder, stored)
    assert batch.context_chunks == tuple(n if keep else 0 for n, keep in zip((1, 2, 3, 1), stored, strict=True))
    online = encoder.encode_image_captions(CAPTIONS)
    ours = encoder.encode_image_captions(CAPTIONS, batch.image_context, batch.context_chunks)
    assert ours.dtype == online.dtype and online.shape == (4, 77 * (image_chunks or 3), 16)
    torch.testing.assert_close(ours, online, rtol=2**-11, atol=2**-20)
    for row, keep in enumerate(stored):
        if not keep:  # nothing of it has passed through float16
            torch.testing.assert_close(ours[row], online[row], rtol=1e-12, atol=1e-12)


def test_only_what_is_missing_is_encoded_and_an_empty_chunk_once(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = TextEncoder.encode_chunks
    monkeypatch.setattr(TextEncoder, "encode_chunks", lambda self, ids: encoded.append(len(ids)) or original(self, ids))
    batch = batch_of(encoder, (True, True, True, True))
    encoded.clear()
    encoder.encode_image_captions(CAPTIONS, batch.image_context, batch.context_chunks)
    assert encoded == [1], "four rows need five empty chunks, which are all the same"
    encoded.clear()
    encoder.encode_image_captions(CAPTIONS[:1], batch.image_context[:1], batch.context_chunks[:1])
    assert encoded == []


@pytest.mark.heavy
def test_the_model_uses_them_for_the_batch_s_own_captions_only() -> None:
    model = mini_model()
    batch = batch_of(model.cond_stage_model, (True, False, True, True)).normalized()
    plain = replace(batch, image_context=None, context_chunks=())
    with torch.no_grad():
        masked = model.masked_latents(batch)
        ours, theirs = model.encode_conditions(batch, masked), model.encode_conditions(plain, masked)
        torch.testing.assert_close(ours.image_context, theirs.image_context, rtol=2**-11, atol=2**-20)
        assert not torch.equal(ours.image_context, theirs.image_context)
        assert torch.equal(ours.text_context, theirs.text_context)
        others = ["another caption"] * 4
        assert torch.equal(
            model.encode_conditions(batch, masked, others).image_context,
            model.cond_stage_model.encode_image_captions(others),
        )
        negative = ours.with_contexts(model.negative_contexts("blurry")).image_context
        assert torch.equal(negative, theirs.with_contexts(model.negative_contexts("blurry")).image_context)


def test_a_batch_without_stored_contexts_has_none(encoder: TextEncoder) -> None:
    batch = batch_of(encoder, (False,) * 4)
    assert batch.image_context is None and batch.context_chunks == ()


def test_the_size_of_a_context_in_the_store(encoder: TextEncoder) -> None:
    (context,) = make_caption_encoder(encoder)(CAPTIONS[2:3])
    assert context.nbytes == context_bytes(CAPTIONS[2], 16) == 3 * 77 * 16 * 2
