"""Connected strokes: clDice (Shit et al. 2021, algorithms 1 and 2) between stroke maps of lines.

A stroke map is each pixel's position between the background's colour (0) and the ink's (1). Both colours are means over
the clean latent's line, outside and inside the glyph page's ink.

Shape legend: N lines, P pixels of an upright line (48 x 320).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from distill.losses.line_crops import inside, sample_pages
from distill.losses.terms.base import Term, TermInput
from distill.losses.terms.lines import LineTermConfig, decoded_lines, mean_of_lines, no_lines, picture_size

_SMOOTH = 1.0
"""Added to numerator and denominator of both ratios of clDice (the paper's epsilon): two empty maps give 1."""

_LEAST_CONTRAST = 0.1
"""Distance between ink and background colour in [-1, 1]; lines with less contrast are ignored."""


@dataclass
class TopologyConfig(LineTermConfig):
    """``iterations``: erosions of the soft skeleton, at least half of the widest stroke in a line of 48 pixels."""

    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations = {self.iterations}: must be at least 1 (5 is usual)")


class Topology(Term):
    """1 - clDice of the student's stroke map and the clean latent's."""

    Config = TopologyConfig

    def __init__(self, config: TopologyConfig) -> None:
        self.config = config

    def __call__(self, given: TermInput) -> Tensor:
        lines = given.shared(decoded_lines, self.config.max_lines)
        if lines is None:
            return no_lines(given)
        glyphs = sample_pages(given.item.batch.glyph.to(lines.clean), lines.places, picture_size(given))
        student, clean, visible = stroke_maps(lines.student, lines.clean, glyphs, inside(lines.places, lines.clean))
        values = (1.0 - cl_dice(student, clean, self.config.iterations)) * visible
        return mean_of_lines(values, lines.places, given, self.config.step_weight)


def stroke_maps(student: Tensor, clean: Tensor, glyphs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stroke maps [N, 1, P] in 0..1 of lines [N, 3, P] in [-1, 1], and 1 for lines with contrast, else 0 [N].

    glyphs: ink [N, 1, P] in 0..1; mask: 1 inside of a line, 0 in its padding.
    """

    def color(share: Tensor) -> Tensor:
        total = share.sum(dim=(2, 3), keepdim=True)
        return (clean * share).sum(dim=(2, 3), keepdim=True) / total.clamp_min(1e-6)

    ground = color((1.0 - glyphs) * mask)
    way = color(glyphs * mask) - ground
    length = way.square().sum(dim=1, keepdim=True)
    maps = [
        ((line - ground) * way).sum(dim=1, keepdim=True).div(length.clamp_min(1e-6)).clamp(0, 1) * mask
        for line in (student, clean)
    ]
    visible = (length.flatten() >= _LEAST_CONTRAST**2) & (glyphs * mask).flatten(1).any(dim=1)
    return maps[0], maps[1], visible.to(clean.dtype)


def cl_dice(first: Tensor, second: Tensor, iterations: int) -> Tensor:
    """Centreline Dice [N] in 0..1 of two maps [N, 1, H, W] in 0..1: the share of each skeleton inside the other map."""

    def share(skeleton: Tensor, whole: Tensor) -> Tensor:
        return ((skeleton * whole).flatten(1).sum(1) + _SMOOTH) / (skeleton.flatten(1).sum(1) + _SMOOTH)

    precision = share(soft_skeleton(first, iterations), second)
    sensitivity = share(soft_skeleton(second, iterations), first)
    return 2.0 * precision * sensitivity / (precision + sensitivity)


def soft_skeleton(image: Tensor, iterations: int) -> Tensor:
    """What each of ``iterations`` erosions leaves that no opening would: the centre lines of a map [N, 1, H, W]."""
    skeleton = F.relu(image - _opened(image))
    for _ in range(iterations):
        image = _eroded(image)
        skeleton = skeleton + F.relu(image - _opened(image)) * (1.0 - skeleton)
    return skeleton


def _eroded(image: Tensor) -> Tensor:
    return -F.max_pool2d(-image, 3, stride=1, padding=1)


def _opened(image: Tensor) -> Tensor:
    return F.max_pool2d(_eroded(image), 3, stride=1, padding=1)
