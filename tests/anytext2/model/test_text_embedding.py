from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anytext2.core.batch import Batch, collate, font_lines, line_quads
from anytext2.model.anytext2 import AnyText2
from anytext2.model.text_embedding import LineEmbeddingParts, TextEmbeddingConfig
from tests.helpers.models.mini_model import MAX_LINES, mini_batch, mini_model, sample
from tests.helpers.models.parity import gradients

N_LINES = (1, 3, 2)


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return mini_model()


def parts_of(model: AnyText2, batch: Batch) -> LineEmbeddingParts:
    return model.embedding_manager.parts(batch, model.text_predictor)


def with_masks(batch: Batch, **masks: torch.Tensor) -> Batch:
    """The batch with other masks, and what `collate` computes of them."""
    changed = replace(batch, **masks)
    quads = line_quads(changed.position, changed.n_lines)
    return replace(changed, quads=quads, font_line=font_lines(changed.font_hint, quads))


def changed(before: Tensor, after: Tensor) -> list[int]:
    """Rows that differ."""
    return (before - after).abs().amax(dim=1).gt(1e-9).nonzero().flatten().tolist()


def layer_norm_of_linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = x @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return x * state[f"{name}.1.weight"] + state[f"{name}.1.bias"]


@pytest.mark.heavy
def test_parts_against_plain_functions(model: AnyText2) -> None:
    batch = mini_batch(N_LINES)
    state = dict(model.embedding_manager.named_parameters())
    glyphs, places, colors = [], [], []
    for b, n in enumerate(N_LINES):
        for k in range(n):
            line = F.interpolate(
                batch.glyph_line[b, k].double()[None, None] * 255, (48, 308), mode="bilinear", align_corners=True
            )
            glyphs.append(F.pad((line / 255 - 0.5) / 0.5, (0, 12)).repeat(1, 3, 1, 1))
            places.append(batch.position[b, k].double()[None, None])
            colors.append(batch.color[b, k].double())
    parts = parts_of(model, batch)
    torch.testing.assert_close(parts.glyph_input.double(), torch.cat(glyphs), rtol=0, atol=1e-4)

    features = model.text_predictor(parts.glyph_input).features.flatten(1)
    torch.testing.assert_close(parts.glyph, layer_norm_of_linear(state, "proj", features))
    features = model.embedding_manager.font_predictor(parts.font_input).features.flatten(1)
    torch.testing.assert_close(parts.style, layer_norm_of_linear(state, "style_proj", features))
    torch.testing.assert_close(parts.color, layer_norm_of_linear(state, "color_proj", torch.stack(colors)))

    x = torch.cat(places)
    for name, stride in (("conv1", 1), ("conv_list.0", 2), ("conv_list.1", 2), ("conv2", 1)):
        x = F.conv2d(x, state[f"position_encoder.{name}.weight"], state[f"position_encoder.{name}.bias"], stride, 1)
        x = x * torch.sigmoid(x)
    torch.testing.assert_close(parts.position, x.mean((2, 3)), rtol=1e-9, atol=1e-12)
    total = model.embedding_manager(batch, model.text_predictor)
    torch.testing.assert_close(total, parts.glyph + parts.position + parts.style + parts.color)
    assert total.shape == (sum(N_LINES), 16)


@pytest.mark.heavy
def test_font_crop_is_the_hint_in_the_lines_own_place(model: AnyText2) -> None:
    batch = mini_batch()
    band = torch.zeros_like(batch.font_hint)
    band[1, :, 10:18] = 1  # line 1 of sample 1 is line 2 of the batch
    fonts = parts_of(model, with_masks(batch, font_hint=band)).font_input
    assert [row for row in range(6) if fonts[row].max() > 0] == [2]
    assert fonts[2, :, 12:-4, 12:180].min() > 0.9


@pytest.mark.heavy
def test_every_part_sees_its_own_input_and_no_other(model: AnyText2) -> None:
    batch = mini_batch()
    before = parts_of(model, batch)
    row, line, packed = 1, 2, 3
    glyph_line, color, position = batch.glyph_line.clone(), batch.color.clone(), batch.position.clone()
    glyph_line[row, line] = 1 - glyph_line[row, line]
    color[row, line] = torch.tensor([1.0, 2.0, 250.0])
    position[row, line, 24:] = 0
    for change, affected in (
        ({"glyph_line": glyph_line}, {"glyph"}),
        ({"color": color}, {"color"}),
        ({"position": position}, {"position", "style"}),
        ({"font_hint": 1 - batch.font_hint}, {"style"}),
    ):
        after = parts_of(model, with_masks(batch, **change))
        for name in ("glyph", "position", "style", "color"):
            rows = changed(getattr(before, name), getattr(after, name))
            everywhere = list(range(6)) if "font_hint" in change else [packed]
            assert rows == (everywhere if name in affected else []), (change.keys(), name)


@pytest.mark.heavy
def test_padding_is_never_read(model: AnyText2) -> None:
    batch = mini_batch()
    before = model.embedding_manager(batch, model.text_predictor)
    glyph_line, color, position = batch.glyph_line.clone(), batch.color.clone(), batch.position.clone()
    for b, n in enumerate(N_LINES):
        glyph_line[b, n:], color[b, n:], position[b, n:] = 1, 3.0, 1
    noisy = replace(batch, glyph_line=glyph_line, color=color, position=position)
    assert torch.equal(model.embedding_manager(noisy, model.text_predictor), before)


@pytest.mark.heavy
def test_a_line_does_not_depend_on_the_batch_around_it(model: AnyText2) -> None:
    batch = mini_batch()
    together = model.embedding_manager(batch, model.text_predictor)
    alone = model.embedding_manager(collate([sample(1, 3, editing=True)]), model.text_predictor)
    torch.testing.assert_close(together[1:4], alone, rtol=1e-9, atol=1e-9)


def test_no_lines(model: AnyText2) -> None:
    batch = mini_batch((0, 0), (False, False))
    assert batch.glyph_line.shape[1] == MAX_LINES
    assert model.embedding_manager(batch, model.text_predictor).shape == (0, 16)


@pytest.mark.heavy
def test_a_line_without_a_place_is_told(model: AnyText2) -> None:
    batch = mini_batch()
    position = batch.position.clone()
    position[1, 0] = 0
    with pytest.warns(UserWarning, match="position mask has no region"):
        changed = with_masks(batch, position=position)
    assert [quad is None for row in changed.quads for quad in row] == [False, True, False, False, False, False]
    assert parts_of(model, changed).total.isfinite().all()


@pytest.mark.heavy
def test_gradients_reach_every_trained_tensor(model: AnyText2) -> None:
    manager = model.embedding_manager
    trained = {name: p for name, p in manager.named_parameters() if not name.startswith("font_predictor.head.")}
    total = manager(mini_batch(), model.text_predictor)
    for name, gradient in zip(trained, gradients([total], list(trained.values())), strict=True):
        assert gradient.isfinite().all() and gradient.any(), name


def test_impossible_config() -> None:
    with pytest.raises(ValueError, match="text_embedding.position_widths"):
        TextEmbeddingConfig(position_widths=[])
