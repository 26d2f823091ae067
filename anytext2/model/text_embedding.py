"""The line embeddings that replace the placeholders in the text caption (AnyText2's `embedding_manager`).

A line's embedding is the sum of four projections: of its glyph, position, font and colour (Tuo et al. 2024, section
3.3). Attribute names are the official checkpoint's.

Shape suffixes: N lines of the whole batch, sample by sample; D width of the embedding; H/W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from anytext2.core.batch import Batch
from anytext2.core.line_crop import recognizer_input
from anytext2.model.recognizer import Recognizer, RecognizerConfig


@dataclass(frozen=True)
class TextEmbeddingConfig:
    """position_widths: channels of the position encoder's levels; each level halves height and width."""

    position_widths: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256])

    def __post_init__(self) -> None:
        if not self.position_widths or min(self.position_widths) < 1:
            raise ValueError(f"text_embedding.position_widths = {list(self.position_widths)}: give widths >= 1")


@dataclass(frozen=True)
class LineEmbeddingParts:
    """The four summands of the line embeddings, [N, D] each, and the recognisers' inputs.

    style: of the font. glyph_input, font_input: float32 [N, 3, 48, 320].
    """

    glyph: Tensor
    position: Tensor
    style: Tensor
    color: Tensor
    glyph_input: Tensor
    font_input: Tensor

    @property
    def total(self) -> Tensor:
        """The line embeddings [N, D]."""
        return self.glyph + self.position + self.style + self.color


class PositionEncoder(nn.Module):
    """Position map [N, 1, H, W] -> [N, D]."""

    def __init__(self, widths: list[int], width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1)
        self.conv_list = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.conv2 = nn.Conv2d(widths[-1], width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, *self.conv_list, self.conv2):
            x = F.silu(conv(x))
        return x.mean(dim=(2, 3))


class TextEmbedding(nn.Module):
    """AnyText2's `embedding_manager`. The glyph recogniser is not a part of it, but an argument of its methods."""

    def __init__(self, cfg: TextEmbeddingConfig, recognizer: RecognizerConfig, width: int) -> None:
        super().__init__()
        self.width = width
        self.position_encoder = PositionEncoder(list(cfg.position_widths), width)
        self.font_predictor = Recognizer(recognizer)
        self.style_proj = nn.Sequential(nn.Linear(recognizer.feature_size, width), nn.LayerNorm(width))
        self.color_proj = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width))
        self.proj = nn.Sequential(nn.Linear(recognizer.feature_size, width), nn.LayerNorm(width))

    def forward(self, batch: Batch, recognizer: Recognizer) -> Tensor:
        """Line embeddings [N, D], sample by sample; N is the sum of `batch.n_lines`."""
        if not sum(batch.n_lines):
            return self.position_encoder.conv1.weight.new_zeros(0, self.width)
        return self.parts(batch, recognizer).total

    def parts(self, batch: Batch, recognizer: Recognizer) -> LineEmbeddingParts:
        """The summands of the line embeddings. The batch must have at least one line."""
        dtype = self.position_encoder.conv1.weight.dtype
        sample, line = batch.line_index
        position_N1HW = batch.position[sample, line].unsqueeze(1).to(dtype)
        glyph_input = recognizer_input(batch.glyph_line[sample, line].unsqueeze(1).float())
        font_input = batch.font_line.expand(-1, 3, -1, -1)
        return LineEmbeddingParts(
            glyph=self.proj(recognizer.features(glyph_input).flatten(1)),
            position=self.position_encoder(position_N1HW),
            style=self.style_proj(self.font_predictor.features(font_input).flatten(1)),
            color=self.color_proj(batch.color[sample, line].to(dtype)),
            glyph_input=glyph_input,
            font_input=font_input,
        )
