"""Focal frequency loss (Jiang et al. 2021, equations 8 and 9): frequencies with larger errors get larger weights.

It depends on the difference of the two spectra only, so taking both of residuals (the masked picture subtracted)
changes nothing. What remains of the residual form is the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.terms.base import Term, TermConfig, TermInput
from distill.losses.text_mask import soft_window


@dataclass
class FocalFrequencyConfig(TermConfig):
    """``alpha``: exponent of the weights. ``windowed``: multiply by the soft-edged text boxes first."""

    alpha: float = 1.0
    windowed: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha = {self.alpha}: must be >= 0 (1 is usual, 0 weighs all frequencies equally)")


class FocalFrequency(Term):
    """Focal frequency loss of prediction and target."""

    Config = FocalFrequencyConfig

    def __init__(self, config: FocalFrequencyConfig) -> None:
        self.config = config

    def __call__(self, given: TermInput) -> Tensor:
        difference = given.prediction - given.target
        if self.config.windowed:
            difference = difference * soft_window(given.item.batch, *difference.shape[-2:]).to(difference)
        return focal_frequency(difference, self.config.alpha)


def focal_frequency(difference: Tensor, alpha: float) -> Tensor:
    """Mean over frequencies of w |F|^2 [B], F the orthonormal transform of ``difference`` [B,C,h,w].

    w = (|F| / max |F|)^alpha, the greatest in each channel being 1; it carries no gradient.
    """
    # cuFFT has half precision for powers of two only, and no bfloat16
    spectrum = torch.fft.fft2(difference.to(torch.promote_types(difference.dtype, torch.float32)), norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    with torch.no_grad():
        size = power.sqrt()
        weight = (size / size.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)).pow(alpha)
    return (weight * power).flatten(1).mean(dim=1)
