"""From one recorded dataset batch to what the networks are told, at every recorded place in between."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from anytext2.core.batch import Batch, Sample, collate
from anytext2.model.anytext2 import AnyText2
from anytext2.model.text_embedding import LineEmbeddingParts
from anytext2.model.text_encoder import PLACEHOLDER_TOKEN, tokenize_image_captions, tokenize_text_captions
from tests.helpers.models.official_golden import GOLDEN, assert_golden, golden_tensor, read_golden

META = json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))
CAPTIONS = META["cond"]["captions"]
N_LINES = CAPTIONS["n_lines"]


def recorded_batch() -> Batch:
    golden = read_golden("b_batch")

    def chw(name: str) -> Tensor:
        return golden_tensor(golden, name)[0].permute(2, 0, 1)

    def binary(name: str) -> Tensor:
        assert set(np.unique(golden[f"{name}_u8"])) <= {0, 255}, name
        return chw(f"{name}_u8") // 255

    image = chw("img_u8").float() / 127.5 - 1
    glyphs = torch.stack([chw(f"glyphs_{i}_u8") for i in range(N_LINES)])
    return collate(
        [
            Sample(
                index=0,
                name="recorded",
                image=image,
                masked_image=(image - 10 * binary("hint")).clip(-1, 1),
                # the pages are drawn in colour; the WriteNet is shown where there is ink
                glyph=glyphs.amax(dim=(0, 1)).gt(0).to(torch.uint8)[None],
                position=torch.cat([binary(f"positions_{i}") for i in range(N_LINES)]),
                glyph_line=torch.cat([binary(f"gly_line_{i}") for i in range(N_LINES)]),
                font_hint=binary("font_hint"),
                color=torch.stack([golden_tensor(golden, f"color_{i}")[0].float() for i in range(N_LINES)]),
                inverse_mask=binary("inv_mask"),
                n_lines=N_LINES,
                editing=True,
                image_caption=CAPTIONS["img_caption"][0],
                text_caption=CAPTIONS["text_caption"][0],
                texts=tuple(text[0] for text in CAPTIONS["texts"][:N_LINES]),
                languages=tuple(language[0] for language in CAPTIONS["language"][:N_LINES]),
                polygons=(),
            )
        ]
    )


@pytest.fixture(scope="module")
def batch() -> Batch:
    return recorded_batch()


@pytest.fixture(scope="module")
def parts(official_model: AnyText2, batch: Batch) -> LineEmbeddingParts:
    with torch.inference_mode():
        return official_model.embedding_manager.parts(batch, official_model.text_predictor)


def in_line_order(recorded: np.ndarray, ours: Tensor) -> Tensor:
    """The recorded recogniser inputs, which are sorted by aspect ratio, in the order of ours."""
    reference = torch.from_numpy(recorded)
    distances = (ours[:, None] - reference[None]).square().flatten(2).sum(dim=2)
    return reference[distances.argmin(dim=1)]


def test_glyph_page_and_positions(batch: Batch) -> None:
    golden = read_golden("c_hint_in")
    assert torch.equal(batch.glyph, golden_tensor(golden, "glyph_mask"))
    assert torch.equal(batch.position.sum(dim=1, keepdim=True).float(), golden_tensor(golden, "positions"))


@torch.inference_mode()
def test_latents(official_model: AnyText2, batch: Batch) -> None:
    golden = read_golden("b_latents")
    assert_golden(batch.masked_image, golden, "masked_img")
    assert_golden(official_model.masked_latents(batch), golden, "masked_x")
    assert_golden(official_model.encode(batch.image), golden, "x0")
    assert_golden(official_model.first_stage_model.encode_moments(batch.masked_image)[1], golden, "masked_logvar")


@pytest.mark.parametrize(("name", "attribute"), [("rec_input", "glyph_input"), ("font_input", "font_input")])
def test_recognizer_inputs(parts: LineEmbeddingParts, name: str, attribute: str) -> None:
    ours = getattr(parts, attribute)
    reference = in_line_order(read_golden("b_embedding")[name], ours)
    assert (ours - reference).norm() / reference.norm() <= 1e-4
    assert not torch.equal(reference[0], reference[1])


@torch.inference_mode()
def test_recognizer_features_and_logits(official_model: AnyText2, parts: LineEmbeddingParts) -> None:
    golden = read_golden("b_embedding")
    logits, features = official_model.text_predictor(parts.glyph_input)
    torch.testing.assert_close(features, golden_tensor(golden, "rec_ctc_neck"), rtol=0, atol=1e-3)
    assert_golden(logits, golden, "rec_ctc")
    fonts = official_model.embedding_manager.font_predictor.features(parts.font_input)
    torch.testing.assert_close(fonts, golden_tensor(golden, "font_ctc_neck"), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("glyph_proj", "glyph"),
        ("position_enc", "position"),
        ("style_proj", "style"),
        ("color_proj", "color"),
        ("text_embs", "total"),
    ],
)
def test_line_embedding(parts: LineEmbeddingParts, name: str, attribute: str) -> None:
    assert_golden(getattr(parts, attribute), read_golden("b_embedding"), name)


def test_colors_and_places(batch: Batch) -> None:
    assert_golden(batch.color[0], read_golden("b_embedding"), "color_in")
    assert all(quad is not None for quad in batch.quads[0])


@pytest.mark.parametrize(
    ("image_caption", "text_caption", "stage"),
    [(CAPTIONS["img_caption"][0], CAPTIONS["text_caption"][0], "b_cond"), (META["uncond"]["n_prompt"], "", "b_uncond")],
)
def test_token_ids(image_caption: str, text_caption: str, stage: str) -> None:
    golden = read_golden(stage)
    recorded = golden_tensor(golden, "tokens_img")
    assert torch.equal(tokenize_image_captions([image_caption])[:, 0, : recorded.shape[1]], recorded)
    ours = tokenize_text_captions([text_caption])
    assert torch.equal(ours, golden_tensor(golden, "tokens_text"))
    if stage == "b_cond":
        assert (ours[0] == PLACEHOLDER_TOKEN).nonzero().flatten().tolist() == META["cond"]["placeholder_positions_text"]


@pytest.mark.parametrize(("text", "ids"), META["token_facts"].items())
def test_how_placeholders_are_tokenised(text: str, ids: list[int]) -> None:
    assert tokenize_text_captions([text])[0, 1 : 1 + len(ids)].tolist() == ids


@torch.inference_mode()
def test_conditional_and_unconditional(official_model: AnyText2, batch: Batch) -> None:
    conditions = official_model.encode_conditions(batch, official_model.masked_latents(batch))
    golden = read_golden("b_cond")
    assert_golden(conditions.image_context, golden, "img_cond")
    assert_golden(conditions.text_context, golden, "text_cond")

    without = conditions.with_contexts(official_model.negative_contexts(META["uncond"]["n_prompt"]))
    golden = read_golden("b_uncond")
    assert_golden(without.image_context, golden, "img_cond")
    assert_golden(without.text_context, golden, "text_cond")
    assert without.glyph is conditions.glyph


@torch.inference_mode()
def test_long_caption(official_model: AnyText2) -> None:
    context = official_model.cond_stage_model.encode_image_captions([META["longcap"]["text"]])
    assert_golden(context, read_golden("b_longcap"), "img_cond")
