from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anytext2.model.text_encoder import (
    END_TOKEN,
    PLACEHOLDER_TOKEN,
    START_TOKEN,
    TextEncoder,
    TextEncoderConfig,
    count_placeholders,
    tokenize_image_captions,
    tokenize_text_captions,
)
from tests.helpers.models.mini_model import fill
from tests.helpers.models.parity import gradients, normal

WIDTH = 16


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    encoder = TextEncoder(TextEncoderConfig(width=WIDTH, layers=2, heads=2))
    fill(encoder)
    return encoder.requires_grad_(False)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_captions_end_and_are_padded_with_the_end_token() -> None:
    ids = tokenize_text_captions(["a cat", ""])
    assert ids.shape == (2, 77) and ids.dtype == torch.int64
    assert ids[0].tolist() == [START_TOKEN, 320, 2368, *[END_TOKEN] * 74]
    assert ids[1].tolist() == [START_TOKEN, *[END_TOKEN] * 76]


def test_a_long_text_caption_is_cut() -> None:
    ids = tokenize_text_captions(["a " * 100])
    assert ids[0].tolist() == [START_TOKEN, *[320] * 75, END_TOKEN]


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_of_image_captions(words: int, chunks: int) -> None:
    ids = tokenize_image_captions(["a " * words, "b"])
    assert ids.shape == (2, chunks, 77)
    assert (ids[:, :, 0] == START_TOKEN).all() and (ids[:, :, -1] == END_TOKEN).all()
    assert (ids[0] == 320).sum() == words
    assert (ids[1, 1:, 1:] == END_TOKEN).all(), "a shorter caption gets empty chunks"


def test_a_fixed_number_of_chunks_does_not_depend_on_the_batch() -> None:
    long, short = "a " * 200, "b"
    both = tokenize_image_captions([long, short], 2)
    assert both.shape == (2, 2, 77)
    assert torch.equal(both[1:], tokenize_image_captions([short], 2))


@pytest.mark.parametrize(
    ("caption", "count"),
    [("Text says * , * . ", 2), ("", 0), ("Text says *, *. ", 0), ("a*b", 1), ("**", 0), (" * " * 80, 75)],
)
def test_count_placeholders(caption: str, count: int) -> None:
    assert count_placeholders([caption]) == (count,)


# --- the tower -------------------------------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-1.702 * x))


def plain_tower(encoder: TextEncoder, embedded: Tensor) -> Tensor:
    """The same weights in torch's own pre-norm encoder layers."""
    state = encoder.tower.state_dict()
    x = embedded + state["positional_embedding"]
    names = {
        "self_attn.": "attn.",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "linear1.": "mlp.c_fc.",
        "linear2.": "mlp.c_proj.",
    }
    for i in range(2):
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 4 * WIDTH, 0.0, QuickGELU(), batch_first=True, norm_first=True, dtype=torch.float64
        )
        layer.load_state_dict(
            {
                theirs + rest: state[f"transformer.resblocks.{i}.{ours}{rest}"]
                for theirs, ours in names.items()
                for rest in ("weight", "bias", "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
                if f"transformer.resblocks.{i}.{ours}{rest}" in state
            }
        )
        x = layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype))
    return nn.functional.layer_norm(x, (WIDTH,), state["ln_final.weight"], state["ln_final.bias"])


def test_image_captions_against_torchs_encoder(encoder: TextEncoder) -> None:
    captions = ["a " * 80 + "dog", "a red * poster"]
    table = encoder.tower.token_embedding.weight
    expected = torch.cat(
        [plain_tower(encoder, table[ids]) for ids in tokenize_image_captions(captions).unbind(1)], dim=1
    )
    ours = encoder.encode_image_captions(captions)
    assert ours.shape == (2, 154, WIDTH)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_text_captions_against_torchs_encoder(encoder: TextEncoder) -> None:
    """Values, and gradients for the line embeddings."""
    captions, n_lines = ["Text says * , * . ", "", "Text says * . "], [2, 1, 1]
    lines = normal(4, WIDTH).requires_grad_()
    ids = tokenize_text_captions(captions)
    rows, columns = (ids == PLACEHOLDER_TOKEN).nonzero(as_tuple=True)
    embedded = encoder.tower.token_embedding.weight[ids].clone()
    for row, column, line in zip(rows, columns, [0, 1, 3], strict=True):
        embedded[row, column] = lines[line]
    expected = plain_tower(encoder, embedded)
    ours = encoder.encode_text_captions(captions, lines, n_lines, ["p", "q", "r"])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    ours_grad, expected_grad = gradients([ours], [lines]), gradients([expected], [lines])
    torch.testing.assert_close(ours_grad, expected_grad, rtol=1e-9, atol=1e-9)
    assert not ours_grad[0][2].any() and ours_grad[0][[0, 1, 3]].abs().amin(dim=1).min() > 0


def test_a_line_reaches_only_what_follows_its_placeholder(encoder: TextEncoder) -> None:
    lines, captions, names = normal(3, WIDTH), ["Text says * , * . ", "Text says * . "], ["p", "q"]
    before = encoder.encode_text_captions(captions, lines, [2, 1], names)
    changed = lines.clone()
    changed[1] += normal(WIDTH, seed=1)
    difference = (encoder.encode_text_captions(captions, changed, [2, 1], names) - before).abs().amax(dim=2)
    second = int((tokenize_text_captions(captions)[0] == PLACEHOLDER_TOKEN).nonzero()[1])
    assert difference[0, :second].max() < 1e-12 < 1e-6 < difference[0, second:].min()
    assert difference[1].max() < 1e-12


@pytest.mark.parametrize(
    ("caption", "n_lines", "found"),
    [("Text says *, * . ", 2, 1), ("Text says * . ", 2, 1), ("Text says * , * . ", 1, 2)],
)
def test_wrong_number_of_placeholders_names_the_sample(
    encoder: TextEncoder, caption: str, n_lines: int, found: int
) -> None:
    with pytest.raises(ValueError, match=rf"^img7\.jpg: .* has {found} placeholders .* {n_lines} lines"):
        encoder.encode_text_captions(["", caption], normal(n_lines, WIDTH), [0, n_lines], ["img6.jpg", "img7.jpg"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "text_encoder.width = 768"),
        ({"layers": 0}, "text_encoder.layers"),
        ({"image_chunks": -1}, "text_encoder.image_chunks"),
    ],
)
def test_impossible_configs(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEncoderConfig(**change)
