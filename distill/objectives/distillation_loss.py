"""The loss that all student objectives share: distance of prediction and target, its weights, further loss terms.

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from distill.diffusion.schedule import NoiseSchedule
from distill.losses import distances
from distill.losses.step_input import LossOutput, loss_output
from distill.losses.terms import TERMS, Term, TermConfig, TermInput
from distill.losses.text_mask import text_share
from distill.objectives.base import ObjectiveConfig

DISTANCES = ("huber", "l2", "l1")


@dataclass
class DistillationLossConfig(ObjectiveConfig):
    """``loss``: ``huber`` (with ``huber_c``), ``l2`` or ``l1``. ``text_weight``: cells inside text boxes have the
    weight 1 + text_weight. ``min_snr_gamma``: samples have the weight min(SNR, gamma) / gamma (Hang et al. 2023, for a
    loss of x0; 5 is usual, 0 switches it off). ``terms``: further losses by name, with the Configs of
    distill/losses/terms/.
    """

    loss: str = "huber"
    huber_c: float = 1e-3
    text_weight: float = 0.0
    min_snr_gamma: float = 0.0
    terms: dict[str, TermConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in DISTANCES:
            raise ValueError(f"loss = '{self.loss}': choose one of {', '.join(DISTANCES)}")
        if self.huber_c <= 0:
            raise ValueError(f"huber_c = {self.huber_c}: must be > 0 (for a squared loss set loss to l2)")
        for name in ("text_weight", "min_snr_gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be >= 0 (0 switches it off)")

    def distance(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Per-sample distance [B], its elements weighted by ``weight`` [B,1,h,w]."""
        if self.loss == "huber":
            return distances.pseudo_huber(prediction, target, self.huber_c, weight)
        return (distances.l2 if self.loss == "l2" else distances.l1)(prediction, target, weight)


class DistillationLoss:
    """Distance of prediction and target plus weighted loss terms, for one micro-batch."""

    def __init__(self, config: DistillationLossConfig, schedule: NoiseSchedule) -> None:
        self.config, self.schedule = config, schedule
        self.terms: dict[str, Term] = {name: TERMS[name](options) for name, options in config.terms.items()}

    def __call__(self, given: TermInput) -> LossOutput:
        """Report: ``distance``, the loss without terms; ``teacher_distance``, RMS difference between the student's x0
        and the guided teacher's; ``term/NAME``, before weighting.
        """
        config, prediction = self.config, given.prediction
        weight = None
        if config.text_weight > 0:
            weight = 1.0 + config.text_weight * text_share(given.item.batch, *prediction.shape[-2:]).to(prediction)
        per_sample = config.distance(prediction, given.target, weight)
        if config.min_snr_gamma > 0:
            per_sample = per_sample * self.schedule.snr_weight(given.t, config.min_snr_gamma).to(per_sample)
        report = {
            "distance": per_sample.detach().mean(),
            "teacher_distance": (given.x0 - given.teacher_x0).detach().square().mean().sqrt(),
        }
        for name, term in self.terms.items():
            if given.item.update < config.terms[name].after:
                continue
            values = term(given)
            per_sample = per_sample + config.terms[name].weight * values.to(per_sample)
            report[f"term/{name}"] = values.mean()
        return loss_output(per_sample, **report)
