"""How far a student's answer is from what it is to be: the distance, its weights, and further loss terms.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distill.diffusion.schedule import NoiseSchedule
from distill.losses import distances
from distill.losses.step import LossOutput, loss_output
from distill.losses.terms import TERMS, Term, TermInput
from distill.losses.text_mask import text_share

DISTANCES = ("huber", "l2", "l1")


@dataclass
class MatchingConfig:
    """``loss``: ``huber`` (with ``huber_c``), ``l2`` or ``l1``. ``text_weight``: cells inside text boxes weigh
    1 + text_weight. ``min_snr_gamma``: samples weigh min(SNR, gamma) / gamma (Hang et al. 2023, for a loss of x0; 5 is
    usual, 0 switches it off). ``terms``: further losses by name, each a config of `distill.terms`.
    """

    loss: str = "huber"
    huber_c: float = 1e-3
    text_weight: float = 0.0
    min_snr_gamma: float = 0.0
    terms: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in DISTANCES:
            raise ValueError(f"loss = '{self.loss}': choose one of {', '.join(DISTANCES)}")
        if self.huber_c <= 0:
            raise ValueError(f"huber_c = {self.huber_c}: must be > 0 (for a squared loss set loss to l2)")
        for name in ("text_weight", "min_snr_gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be >= 0 (0 switches it off)")

    def distance(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Per-sample distance [B], its elements weighed by ``weight`` [B,1,h,w]."""
        if self.loss == "huber":
            return distances.pseudo_huber(prediction, target, self.huber_c, weight)
        return (distances.l2 if self.loss == "l2" else distances.l1)(prediction, target, weight)


class Matching:
    """The loss that all student objectives share, once they know what to compare."""

    def __init__(self, config: MatchingConfig, schedule: NoiseSchedule) -> None:
        self.config, self.schedule = config, schedule
        self.terms: dict[str, Term] = {name: TERMS[name](options) for name, options in config.terms.items()}

    def __call__(self, compared: TermInput) -> LossOutput:
        """Report: ``distance``, what the loss is without terms; ``teacher_distance``, RMS between the student's x0 and
        the teacher's guided one; ``term/NAME``.
        """
        config, prediction = self.config, compared.prediction
        weight = None
        if config.text_weight > 0:
            weight = 1.0 + config.text_weight * text_share(compared.item.batch, *prediction.shape[-2:]).to(prediction)
        per_sample = config.distance(prediction, compared.target, weight)
        if config.min_snr_gamma > 0:
            per_sample = per_sample * self.schedule.snr_weight(compared.t, config.min_snr_gamma).to(per_sample)
        report = {
            "distance": per_sample.detach().mean(),
            "teacher_distance": (compared.x0 - compared.wanted_x0).detach().square().mean().sqrt(),
        }
        for name, term in self.terms.items():
            if compared.item.update < config.terms[name].after:
                continue
            values = term(compared)
            per_sample = per_sample + config.terms[name].weight * values.to(per_sample)
            report[f"term/{name}"] = values.mean()
        return loss_output(per_sample, **report)
