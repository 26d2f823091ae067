"""The line embeddings that replace the placeholders in the text caption (AnyText2's `embedding_manager`).

A line's embedding is the sum of four projections: of its glyph, position, font and colour (Tuo et al. 2024, section
3.3). Attribute names are the official checkpoint's.

Shape suffixes: N lines of the whole batch, sample by sample; D width of the embedding; H/W pixels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext2.core.batch import Batch
from anytext2.core.line_crop import LINE_HEIGHT, LINE_WIDTH, crop_line, recognizer_input
from anytext2.model.recognizer import Recognizer, RecognizerConfig

# Official AnyText2 takes the font hint of a line without a region from the top left corner.
_DEFAULT_QUAD = np.array([[0, 0], [100, 0], [100, 100], [0, 100]], dtype=np.float32)


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

    style: of the font. glyph_input, font_input: float32 [N, 3, 48, 320]. has_region: for each line, whether its
    position mask has a region for the font hint.
    """

    glyph: Tensor
    position: Tensor
    style: Tensor
    color: Tensor
    glyph_input: Tensor
    font_input: Tensor
    has_region: tuple[bool, ...]

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
        sample, line = _packed_index(batch.n_lines, batch.position.device)
        position_N1HW = batch.position[sample, line].unsqueeze(1).to(dtype)
        glyph_input = recognizer_input(batch.glyph_line[sample, line].unsqueeze(1).float())
        font_input, has_region = font_inputs(batch)
        return LineEmbeddingParts(
            glyph=self.proj(recognizer.features(glyph_input).flatten(1)),
            position=self.position_encoder(position_N1HW),
            style=self.style_proj(self.font_predictor.features(font_input).flatten(1)),
            color=self.color_proj(batch.color[sample, line].to(dtype)),
            glyph_input=glyph_input,
            font_input=font_input,
            has_region=has_region,
        )


def font_inputs(batch: Batch) -> tuple[Tensor, tuple[bool, ...]]:
    """The recogniser's inputs float32 [N, 3, 48, 320]: crops of the font hint at the lines' position masks.

    A line without a region (empty mask, or thinner than a pixel) gets the hint's top left corner, as in official
    AnyText2, and a warning. The second result says which lines have a region.
    """
    hints_B1HW = batch.font_hint.float()
    inputs: list[Tensor] = []
    has_region: list[bool] = []
    for b, n in enumerate(batch.n_lines):
        for number in range(n):
            quad = batch.quads[b][number]
            crop = None if quad is None else crop_line(hints_B1HW[b], quad)
            has_region.append(crop is not None)
            if crop is None:
                # The same text for all lines, so that Python's default filter shows it once per run.
                warnings.warn("a line's position mask has no region to take a font from", stacklevel=2)
                crop = crop_line(hints_B1HW[b], _DEFAULT_QUAD)
                assert crop is not None
            inputs.append(recognizer_input(crop[None]))
    if not inputs:
        return hints_B1HW.new_zeros(0, 3, LINE_HEIGHT, LINE_WIDTH), ()
    return torch.cat(inputs), tuple(has_region)


def _packed_index(n_lines: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sample number and line number, int64 [N] each, of all lines in order."""
    pairs = [(b, number) for b, n in enumerate(n_lines) for number in range(n)]
    sample, line = torch.tensor(pairs, dtype=torch.int64).to(device).unbind(1)
    return sample, line
