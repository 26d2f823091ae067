"""Masked gradient loss: Sobel edges inside the text boxes, where letters blur first.

A linear filter depends on the difference of prediction and target only, so the residual form (the masked picture
subtracted from both) gives the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.losses import distances
from distill.losses.terms.base import Term, TermConfig, TermInput
from distill.losses.text_mask import soft_window, text_share


@dataclass
class GradientConfig(TermConfig):
    """``soft``: weight by boxes with soft edges instead of hard ones."""

    soft: bool = False


class Gradient(Term):
    """Mean absolute difference of Sobel gradients, cells weighted by their share inside the boxes."""

    Config = GradientConfig

    def __init__(self, config: GradientConfig) -> None:
        self.config = config

    def __call__(self, given: TermInput) -> Tensor:
        area = soft_window if self.config.soft else text_share
        weight = area(given.item.batch, *given.prediction.shape[-2:]).to(given.prediction)
        return distances.sobel_difference(given.prediction, given.target, weight)
