"""The weights that ship: what depends on them being trained is tried out."""

from __future__ import annotations

import pytest
import torch

from anytext2.core.line_crop import recognizer_input
from anytext2.glyphs.fonts import load_font_table
from anytext2.glyphs.rasters import glyph_line_font
from anytext2.glyphs.render import glyph_line
from anytext2.model.anytext2 import AnyText2
from anytext2.model.recognizer import ctc_greedy_decode, load_charset
from distill.config.schema import ModelConfig
from distill.inference.model import make_model

FONTS = load_font_table()
WORDS = ("Open", "HOTEL", "coffee", "2024", "Station", "药房", "出口", "北京", "学校", "书店")


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return make_model(ModelConfig(), 0).eval()


def lines_of(texts: list[str]) -> torch.Tensor:
    drawn = [glyph_line(text, glyph_line_font(text, "Chinese", FONTS)) for text in texts]
    return torch.stack([torch.from_numpy(line) for line in drawn]).unsqueeze(1).float()


@pytest.mark.heavy
@torch.no_grad()
def test_the_recogniser_reads_glyph_lines(model: AnyText2) -> None:
    charset = load_charset(model.cfg.recognizer.charset, model.cfg.recognizer.n_classes)
    chinese = [char for char in charset if "\u4e00" <= char <= "\u9fff"][::8]
    read = ctc_greedy_decode(model.text_predictor(recognizer_input(lines_of(chinese))).logits, charset)
    assert sum(a == b for a, b in zip(read, chinese, strict=True)) >= 0.85 * len(chinese)
    known = [word for word in WORDS if set(word) <= set(charset)]
    read = ctc_greedy_decode(model.text_predictor(recognizer_input(lines_of(known))).logits, charset)
    assert len(known) >= 8 and sum(a == b for a, b in zip(read, known, strict=True)) >= 0.6 * len(known)


@pytest.mark.heavy
@torch.no_grad()
def test_the_glyph_features_tell_characters_apart(model: AnyText2) -> None:
    """A line that is a pixel off is nearest to itself among a hundred."""
    charset = load_charset(model.cfg.recognizer.charset, model.cfg.recognizer.n_classes)
    lines = lines_of([char for char in charset if "\u4e00" <= char <= "\u9fff"][:400:4])
    shifted = torch.roll(lines, (1, 1), (2, 3))
    one, other = (model.text_predictor.features(recognizer_input(x)).flatten(1) for x in (lines, shifted))
    nearest = torch.cdist(other, one).argmin(dim=1)
    assert (nearest == torch.arange(len(lines))).float().mean() >= 0.95
