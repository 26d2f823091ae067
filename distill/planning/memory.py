"""The memory of one GPU during a run: the micro-step's, and what ZeRO-2 keeps beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from anytext2.model.recomputation import RECOMPUTATIONS
from distill.config.schema import Recipe
from distill.optim.optimizers import OPTIMIZERS
from distill.planning.micro_step import BACKWARD, CONDITIONS, INPUTS, STUDENT, TEACHER, MicroStep, StepCost

GIB = 2**30
RESERVE = GIB
"""An estimate of what no tensor holds: CUDA's context and libraries, NCCL's buffers, workspaces, gaps."""
FLOAT32 = 4
LEAST_BATCH, MOST_BATCH = 32, 64
MICRO_BATCHES = (1, 2, 4, 6, 8, 12, 16, 24, 32)

_GROUPS = {
    "activations of the student": (STUDENT,),
    "teacher, target and conditions": (TEACHER, CONDITIONS, "VAE"),
    "inputs": (INPUTS,),
    "temporary in the backward pass": (BACKWARD,),
}
"""What grows during a micro-step, by the beginning of the parts' names."""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes by what holds them, at the highest point. They add up to `peak`."""

    parts: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Division:
    """A global batch: micro-batch x accumulation on each of the GPUs. peak: bytes."""

    micro: int
    accumulation: int
    effective: int
    peak: int


def gpu_memory(recipe: Recipe, cost: StepCost, gpus: int, samples: int | None = None) -> GpuMemory:
    """The memory of one of `gpus` GPUs. samples: of a micro-batch, by default those of `cost`; what a micro-step adds
    is made of samples, so that it grows with their number."""
    scale = 1.0 if samples is None else samples / cost.samples
    grown = {name: round(scale * count) for name, count in _grouped(cost.at_peak).items()}
    rest = round(scale * cost.growth) - sum(grown.values())
    kept = {
        **{f"weights: {name}": count for name, count in cost.weights.items() if count >= 2**20},
        "gradients, and their float32 sum": cost.gradients + FLOAT32 * cost.trained,
        f"optimizer: this GPU's part of {gpus}": optimizer_bytes(recipe, cost.trained, gpus),
    }
    return GpuMemory(kept | grown | {"other": rest, "CUDA, NCCL, gaps (estimate)": RESERVE})


def optimizer_bytes(recipe: Recipe, trained: int, gpus: int) -> int:
    """This rank's float32 weights, moments and moving average."""
    values = 1 + len(OPTIMIZERS[recipe.train.optimizer].moments) + (recipe.train.ema_decay > 0)
    return FLOAT32 * values * -(-trained // gpus)


def _grouped(at_peak: Mapping[str, int]) -> dict[str, int]:
    return {
        group: sum(count for part, count in at_peak.items() if part.startswith(starts))
        for group, starts in _GROUPS.items()
    }


def costs_by_recomputation(step: MicroStep, samples: int) -> dict[str, StepCost]:
    """What a micro-step costs with each setting of model.activation_checkpointing."""
    found = {}
    for setting in RECOMPUTATIONS:
        step.recompute(setting)
        found[setting] = step.run(samples)
    step.recompute(step.recipe.model.activation_checkpointing)
    return found


def divisions(recipe: Recipe, cost: StepCost, gpus: int, memory: int) -> Iterator[Division]:
    """The micro-batches and accumulations of 32 to 64 samples in all that fit into `memory` bytes."""
    for micro in MICRO_BATCHES:
        peak = gpu_memory(recipe, cost, gpus, micro).peak
        if peak > memory:
            return
        for accumulation in range(1, MOST_BATCH + 1):
            effective = micro * accumulation * gpus
            if LEAST_BATCH <= effective <= MOST_BATCH:
                yield Division(micro, accumulation, effective, peak)
