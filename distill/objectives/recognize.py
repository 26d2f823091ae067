"""Training of the line recogniser: CTC on rendered glyph lines and on the lines cropped from the pictures.

Both views are in one forward pass, so that the running batch statistics are those of the later inputs: plain glyph
lines (AnyText2's text features) and photographed lines (its OCR loss and score).

Shape legend: B batch, N lines of the batch (line-major: first lines of all samples, then second lines, ...), H/W
pixels, T = 40 columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytext2.core.batch import Batch
from anytext2.core.line_crop import crop_line, quad_from_points, recognizer_input
from anytext2.core.rng import Draws
from anytext2.glyphs.fonts import Font, FontTable, load_font_table
from anytext2.glyphs.rasters import glyph_line_font
from anytext2.glyphs.render import glyph_line
from anytext2.model.recognizer import COLUMNS
from distill.adapters.roles import Roles
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.ctc import charset_of, columns_needed, text_loss
from distill.losses.step_input import LossOutput, StepInput, loss_output, rows_of
from distill.objectives.base import FullWeightObjective, ObjectiveConfig, named_parameters_of
from distill.objectives.ctc_alignment import glyph_line_columns

if TYPE_CHECKING:
    from anytext2.model.anytext2 import AnyText2

_RANDOM_LENGTH = 6  # so many Chinese characters fill a glyph line at the size a single one has


@dataclass
class RecognizeConfig(ObjectiveConfig):
    """``glyph_weight`` and ``photo_weight``: of the two views. ``recolor_prob``: share of the glyph lines that get
    random ink and paper instead of white on black. ``augment``: strength of noise, blur, contrast and crop jitter (0:
    none, 1: strong but readable). ``align_weight``: of a cross-entropy with the known place of each character of a
    glyph line, which keeps CTC from predicting only blanks at the start. ``random_text``: share of the glyph lines with
    six random characters of the charset instead of the picture's text: every class occurs equally often, and a line
    of six costs no more than a line of one.
    """

    glyph_weight: float = 1.0
    photo_weight: float = 1.0
    recolor_prob: float = 0.5
    augment: float = 1.0
    align_weight: float = 0.0
    random_text: float = 0.0

    def __post_init__(self) -> None:
        if min(self.glyph_weight, self.photo_weight) < 0 or self.glyph_weight + self.photo_weight == 0:
            raise ValueError("recognize: glyph_weight and photo_weight must be >= 0 and not both 0")
        if self.align_weight < 0:
            raise ValueError(f"recognize.align_weight = {self.align_weight}: must be >= 0")
        for name in ("recolor_prob", "augment", "random_text"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"recognize.{name} = {getattr(self, name)}: must be between 0 and 1")


@dataclass(frozen=True)
class LineView:
    """One line of one sample as the recogniser's input: ``image`` [3, 48, 320], its sample's row, text and weight.

    ``ink``: the drawn glyph line {0, 1} [80, 512] and ``font`` what it was drawn with; None for a line in the picture.
    """

    image: Tensor
    row: int
    text: str
    weight: float
    ink: Tensor | None = None
    font: Font | None = None


class Recognize(FullWeightObjective):
    """Reads every line of the batch twice: as a glyph line and in the picture."""

    Config = RecognizeConfig
    config: RecognizeConfig
    trains = "recognizer"
    needs_latents = False

    def __init__(self, config: RecognizeConfig, schedule: NoiseSchedule) -> None:
        self.config = config

    def trainable(self, model: AnyText2) -> Iterable[tuple[str, nn.Parameter]]:
        return named_parameters_of(model, ("text_predictor",))

    def loss(self, roles: Roles, item: StepInput) -> LossOutput:
        """Per line CTC / 40 as AnyText2 scales it; per sample the weighted mean of its lines (0 without any).

        Report: ``lines`` seen and ``lines_skipped`` (blank, too long for CTC, or less than a pixel in the picture).
        """
        batch, recognizer = item.batch, roles.model.text_predictor
        views, skipped = self._views(batch, item.draws, charset_of(recognizer))
        device = batch.image.device
        counts = {
            "lines": torch.tensor(float(len(views)), device=device),
            "lines_skipped": torch.tensor(float(skipped), device=device),
        }
        if not views:
            nothing = sum(parameter.sum() for parameter in recognizer.parameters()) * 0.0
            return loss_output(nothing * torch.ones(batch.size, device=device), **counts)
        with _mode(recognizer, training=roles.model.training):
            logits = recognizer(torch.stack([view.image for view in views])).logits
        values = ctc(logits, [view.text for view in views], charset_of(recognizer))
        if self.config.align_weight:
            values = values + self.config.align_weight * alignment(logits, _columns(views, charset_of(recognizer)))
        rows = torch.tensor([view.row for view in views], device=device)
        weights = torch.tensor([view.weight for view in views], device=device)
        totals = values.new_zeros(batch.size).index_add(0, rows, weights * values)
        per_sample = totals / torch.zeros(batch.size, device=device).index_add(0, rows, weights).clamp_min(1e-12)
        return loss_output(per_sample, **counts)

    def _views(self, batch: Batch, draws: Draws, charset: Sequence[str]) -> tuple[list[LineView], int]:
        """The views of all readable lines, and how many (line, view) pairs are not."""
        lines = [(row, line) for line in range(max(batch.n_lines, default=0)) for row in _rows_with(batch, line)]
        views: list[LineView] = []
        for name, weight in (("glyph", self.config.glyph_weight), ("photo", self.config.photo_weight)):
            if weight == 0 or not lines:
                continue
            style = torch.special.ndtr(_line_normals(batch, draws, f"recognize/{name}/style", (12,)))
            noise = _line_normals(batch, draws, f"recognize/{name}/noise", (1, 48, 320))
            jitter = _line_normals(batch, draws, f"recognize/{name}/jitter", (4, 2))
            letters = torch.special.ndtr(_line_normals(batch, draws, f"recognize/{name}/text", (1 + _RANDOM_LENGTH,)))
            for at, (row, line) in enumerate(lines):
                if name == "photo":
                    text, ink, font = batch.texts[row][line], None, None
                else:
                    text, ink, font = self._line(batch, row, line, letters[at], charset)
                if not text.strip() or columns_needed(text) > COLUMNS:
                    continue
                crop = self._photo(batch, row, line, jitter[at]) if ink is None else self._glyph(ink, style[at])
                if crop is not None:
                    image = self._finish(crop, style[at], noise[at])
                    views.append(LineView(image, row, text, weight, ink, font))
        views_of_a_line = (self.config.glyph_weight > 0) + (self.config.photo_weight > 0)
        return views, views_of_a_line * len(lines) - len(views)

    def _line(
        self, batch: Batch, row: int, line: int, numbers: Tensor, charset: Sequence[str]
    ) -> tuple[str, Tensor, Font]:
        """Text, ink {0, 1} [80, 512] and font of a glyph line: the batch's, or one of random characters."""
        text, language = batch.texts[row][line], batch.languages[row][line]
        if numbers[0] >= self.config.random_text:
            return text, batch.glyph_line[row, line], glyph_line_font(text, language, _fonts())
        characters = [char for char in charset if char.strip()]
        text = "".join(characters[min(int(x * len(characters)), len(characters) - 1)] for x in numbers[1:])
        font = glyph_line_font(text, language, _fonts())
        return text, torch.from_numpy(glyph_line(text, font)).to(batch.glyph_line), font

    def _glyph(self, ink: Tensor, style: Tensor) -> Tensor:
        """The rendered line [3, 80, 512] in [0, 1], white on black or in random colours."""
        ink = ink.float().expand(3, -1, -1)
        if style[0] >= self.config.recolor_prob:
            return ink
        paper, ink_color = contrasting_colors(style[1:7])
        return paper.to(ink.device) + ink * (ink_color - paper).to(ink.device)

    def _photo(self, batch: Batch, row: int, line: int, jitter: Tensor) -> Tensor | None:
        """The line in the picture, upright [3, h, w] in [0, 1], with its corners moved a little at random."""
        quad = quad_from_points(batch.polygons[row][line])
        height = float(((quad[0] - quad[3]) ** 2).sum() ** 0.5)
        shift = jitter.clamp(-2, 2).numpy() * 0.04 * height * self.config.augment
        return crop_line((batch.image[row].float() + 1) / 2, quad + shift.astype(quad.dtype))

    def _finish(self, crop: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """The recogniser's input [3, 48, 320] with contrast, blur and noise inside the line; the padding stays 0."""
        x = recognizer_input(crop.unsqueeze(0))
        inside = recognizer_input(torch.ones_like(crop[:1]).unsqueeze(0))
        strength = self.config.augment
        blur, gain, offset, grain = style[8:12].tolist()
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = torch.lerp(x, blurred, strength * blur)
        contrast = 1.0 - 0.6 * strength * gain
        x = contrast * x + (1.0 - contrast) * (2.0 * offset - 1.0)
        x = x + 0.15 * strength * grain * noise.to(x.device)
        return (x.clamp(-1, 1) * inside).squeeze(0)


def ctc(logits_NTK: Tensor, texts: Sequence[str], charset: Sequence[str]) -> Tensor:
    """CTC loss per line divided by the number of columns, float32 [N]; every text must fit the columns."""
    return text_loss(logits_NTK, texts, charset) / logits_NTK.shape[1]


def _columns(views: Sequence[LineView], charset: Sequence[str]) -> list[Tensor | None]:
    """The classes of each view's columns; None for lines in the picture, where characters have no known place."""
    return [
        None
        if view.ink is None or view.font is None
        else glyph_line_columns(view.ink.cpu(), view.text, view.font, charset)
        for view in views
    ]


def alignment(logits_NTK: Tensor, columns: Sequence[Tensor | None]) -> Tensor:
    """Mean cross-entropy with the columns' classes, float32 [N]; 0 for lines without known columns."""
    known = [number for number, classes in enumerate(columns) if classes is not None]
    values = logits_NTK.new_zeros(len(columns), dtype=torch.float32)
    if not known:
        return values
    targets = torch.stack([classes for classes in columns if classes is not None]).to(logits_NTK.device)
    entropy = F.cross_entropy(logits_NTK[known].float().transpose(1, 2), targets, reduction="none").mean(dim=1)
    return values.index_add(0, torch.tensor(known, device=values.device), entropy)


def contrasting_colors(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Paper and ink [3, 1, 1] in [0, 1] from six uniform numbers; their grey values differ by at least a quarter."""
    paper, ink = numbers[:3].reshape(3, 1, 1), numbers[3:6].reshape(3, 1, 1)
    if (paper.mean() - ink.mean()).abs() < 0.25:
        # Squeeze the ink into the quarter at the far end of the grey scale
        ink = ink * 0.25 + (0.75 if paper.mean() < 0.5 else 0.0)
    return paper, ink


def _rows_with(batch: Batch, line: int) -> list[int]:
    return [row for row, count in enumerate(batch.n_lines) if count > line]


def _line_normals(batch: Batch, draws: Draws, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers [N, *shape] on the CPU, line-major; a line's numbers do not depend on the other lines."""
    return torch.cat(
        [
            rows_of(draws, _rows_with(batch, line)).normal(f"{purpose}/{line}", shape)
            for line in range(max(batch.n_lines))
        ]
    )


@lru_cache(maxsize=1)
def _fonts() -> FontTable:
    return load_font_table()


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """``module`` in training or evaluation mode for the block: AnyText2 keeps its recognisers in evaluation mode."""
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)
