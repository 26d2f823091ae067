"""AnyText's text perceptual loss (Tuo et al. 2024, section 3.4): lines look to a recogniser as in the picture.

It asks nothing of the text itself, so that styles the recogniser cannot read count as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.terms.base import TermInput
from distill.losses.terms.lines import LineTermConfig, decoded_lines, mean_of_lines, no_lines, student_features


class OcrFeatures:
    """Mean squared difference of the recogniser's features of the student's lines and of the clean latent's."""

    Config = LineTermConfig
    needs_recognizer = True

    def __init__(self, config: LineTermConfig) -> None:
        self.config = config

    def __call__(self, compared: TermInput) -> Tensor:
        lines = compared.shared(decoded_lines, self.config.max_lines)
        if lines is None:
            return no_lines(compared)
        features = compared.shared(student_features, self.config.max_lines)
        with torch.no_grad():
            wanted = compared.roles.model.text_predictor.features(lines.clean)
        difference = features.to(compared.x0.dtype) - wanted.to(compared.x0.dtype)
        values = difference.square().flatten(1).mean(dim=1)
        return mean_of_lines(values, lines.places, compared, self.config.step_weight)
