"""Masked gradient loss: edges inside the text boxes, where letters melt first.

Like every linear filter it sees the difference of prediction and target only, so that the residual form (both less the
masked picture) is the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.losses import distances
from distill.losses.terms.base import TermConfig, TermInput
from distill.losses.text_mask import soft_window, text_share


@dataclass
class GradientConfig(TermConfig):
    """``soft``: weigh by boxes with soft edges instead of the boxes themselves."""

    soft: bool = False


class Gradient:
    """Mean absolute difference of Sobel gradients, cells weighed by their share inside the boxes."""

    Config = GradientConfig

    def __init__(self, config: GradientConfig) -> None:
        self.config = config

    def __call__(self, compared: TermInput) -> Tensor:
        area = soft_window if self.config.soft else text_share
        weight = area(compared.item.batch, *compared.prediction.shape[-2:]).to(compared.prediction)
        return distances.sobel_difference(compared.prediction, compared.target, weight)
