"""AnyText's text perceptual loss (Tuo et al. 2024, section 3.4): a recogniser's features of the lines match.

It does not use the text itself, so it also works for styles that the recogniser cannot read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.terms.base import Term, TermInput
from distill.losses.terms.lines import LineTermConfig, decoded_lines, mean_of_lines, no_lines, student_features


class OcrFeatures(Term):
    """Mean squared difference of the recogniser's features of the student's lines and of the clean latent's."""

    Config = LineTermConfig
    needs_recognizer = True

    def __init__(self, config: LineTermConfig) -> None:
        self.config = config

    def __call__(self, given: TermInput) -> Tensor:
        lines = given.shared(decoded_lines, self.config.max_lines)
        if lines is None:
            return no_lines(given)
        features = given.shared(student_features, self.config.max_lines)
        with torch.no_grad():
            target = given.roles.model.text_predictor.features(lines.clean)
        difference = features.to(given.x0.dtype) - target.to(given.x0.dtype)
        values = difference.square().flatten(1).mean(dim=1)
        return mean_of_lines(values, lines.places, given, self.config.step_weight)
