"""How fast a card runs a micro-step, from its arithmetic and its operations; how long a run then takes."""

from __future__ import annotations

from dataclasses import dataclass

from distill.planning.micro_step import StepCost

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """memory: GiB. flops: a second, of dense matrix products in fp16 that are summed in float32."""

    memory: float
    flops: float


CARDS = {
    "rtx3090": Card(24, 71e12),
    "rtx4090": Card(24, 165e12),
    "rtx5090": Card(32, 209e12),
    "a6000": Card(48, 155e12),
    "l40s": Card(48, 362e12),
    "a100": Card(80, 312e12),
    "h100": Card(80, 989e12),
    "h200": Card(141, 989e12),
}
"""As their maker states them."""

UTILISATION = 0.21
"""Share of the peak that the micro-step of an earlier version reached on an H200 while the GPU was busy."""
SECONDS_AN_OPERATION = 27e-6
"""That Python needs to dispatch one: 0.59 to 0.70 s for 24,400 operations, measured beside that H200."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a micro-step by the GPU's arithmetic and by the host's dispatching; samples a second of all GPUs."""

    gpu: float
    host: float
    samples_per_second: float

    @property
    def limit(self) -> str:
        return "the GPU's arithmetic" if self.gpu >= self.host else "Python, which dispatches the operations"

    def hours(self, updates: int, effective: int) -> float:
        return updates * effective / self.samples_per_second / 3600


def estimate_speed(cost: StepCost, flops: float, utilisation: float, gpus: int) -> Speed:
    """Of `gpus` GPUs of so many FLOP a second each, of which `utilisation` is reached. Communication is left out: it
    takes a hundredth of a second an update."""
    gpu = sum(cost.flops.values()) / (flops * utilisation)
    host = cost.operations * SECONDS_AN_OPERATION
    return Speed(gpu, host, gpus * cost.samples / max(gpu, host))
