"""Columns of a glyph line: each label stands on its own character's ink."""

from __future__ import annotations

import pytest
import torch

from anytext2.glyphs.fonts import load_font_table
from anytext2.glyphs.render import glyph_line
from anytext2.model.recognizer import COLUMNS, CTC_BLANK
from distill.objectives.ctc_alignment import glyph_line_columns
from distill.objectives.recognize import alignment

CHARSET = ("", *"ABCEHPSilm你好", " ")
PIXELS_PER_COLUMN = 320 / COLUMNS * 80 / 48


def collapsed(columns: torch.Tensor) -> str:
    """The CTC reading of a path."""
    merged = [c for c, before in zip(columns.tolist(), [None, *columns.tolist()], strict=False) if c != before]
    return "".join(CHARSET[c] for c in merged if c != CTC_BLANK)


@pytest.mark.parametrize("text", ["A", "SHEEP", "il", "你好", "A好B", "lilEm"])
def test_the_path_reads_as_the_text(text: str) -> None:
    font = load_font_table().default
    columns = glyph_line_columns(torch.from_numpy(glyph_line(text, font)), text, font, CHARSET)
    assert columns.shape == (COLUMNS,) and collapsed(columns) == text


def test_labels_stand_on_their_own_character() -> None:
    font = load_font_table().default
    page = torch.from_numpy(glyph_line("AB你", font))
    ink = page.any(dim=0).nonzero().flatten()
    columns = glyph_line_columns(page, "AB你", font, CHARSET)
    gaps = [i for i in range(1, len(ink)) if ink[i] - ink[i - 1] > 1]  # white between the characters
    edges = [int(ink[0]), *(int(ink[g - 1] + ink[g]) // 2 for g in gaps[:1]), int(ink[-1]) + 1]
    centers = {
        CHARSET[c]: [(i + 0.5) * PIXELS_PER_COLUMN for i in torch.where(columns == c)[0].tolist()]
        for c in columns.unique().tolist()
    }
    assert all(edges[0] <= x < edges[1] for x in centers["A"])
    assert all(x >= edges[1] for x in centers["B"] + centers["你"])
    assert max(centers["B"]) < min(centers["你"])


def test_no_ink_is_all_blank_and_unknown_characters_are_blank() -> None:
    font = load_font_table().default
    assert (glyph_line_columns(torch.zeros(80, 512, dtype=torch.uint8), "AB", font, CHARSET) == CTC_BLANK).all()
    columns = glyph_line_columns(torch.from_numpy(glyph_line("AZB", font)), "AZB", font, CHARSET)
    assert collapsed(columns) == "AB"


def test_alignment_is_the_mean_cross_entropy_of_known_lines_only() -> None:
    logits = torch.randn(3, COLUMNS, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    classes = torch.randint(0, 5, (COLUMNS,), generator=torch.Generator().manual_seed(1))
    values = alignment(logits, [None, classes, None])
    expected = -(logits[1].exp() / logits[1].exp().sum(-1, keepdim=True)).log()[torch.arange(COLUMNS), classes].mean()
    assert values[0] == values[2] == 0
    torch.testing.assert_close(values[1], expected)
    values.sum().backward()
    assert logits.grad is not None and not logits.grad[0].any() and logits.grad[1].any()
