"""Focal frequency loss (Jiang et al. 2021, equations 8 and 9): the frequencies that are worst weigh most.

It is a function of the difference of two spectra alone, so that taking both of a residual (less the masked picture)
instead of the latents changes nothing: the residual cancels. What is left of that form is the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.terms.base import TermConfig, TermInput
from distill.losses.text_mask import soft_window


@dataclass
class FocalFrequencyConfig(TermConfig):
    """``alpha``: how strongly bad frequencies are preferred. ``windowed``: look at the text boxes only, softly cut."""

    alpha: float = 1.0
    windowed: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha = {self.alpha}: must be >= 0 (1 is usual, 0 weighs all frequencies equally)")


class FocalFrequency:
    """See the module."""

    Config = FocalFrequencyConfig

    def __init__(self, config: FocalFrequencyConfig) -> None:
        self.config = config

    def __call__(self, compared: TermInput) -> Tensor:
        difference = compared.prediction - compared.target
        if self.config.windowed:
            difference = difference * soft_window(compared.item.batch, *difference.shape[-2:]).to(difference)
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
