"""The plan of a run: memory, arithmetic, time and storage, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anytext2.data.geometry import Size
from anytext2.model.config import load_model_config
from anytext2.model.recomputation import RECOMPUTATIONS
from distill.config.schema import Recipe
from distill.data.loader import BatchSizes
from distill.data.splits import image_sizes
from distill.planning.memory import GIB, Division, GpuMemory, costs_by_recomputation, divisions, gpu_memory
from distill.planning.micro_step import MicroStep, StepCost, UnplannableError
from distill.planning.speed import Speed, estimate_speed
from distill.planning.storage import CacheCost, HostMemory, cache_cost, host_memory

LEAST_CHANNELS = 256
"""Of the UNet of a model that is worth a warning; the official one has 320, the tiny one 128."""


@dataclass(frozen=True)
class Machine:
    """gpus: in the run, all in one machine. memory: GiB of each. flops: a second, of each; utilisation: share of them
    that is reached. samples_per_second: of all, where it was measured, else 0."""

    gpus: int
    memory: float
    flops: float
    utilisation: float
    samples_per_second: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"--gpus {self.gpus}: must be at least 1")
        if not self.memory > 0:
            raise ValueError(f"--memory {self.memory:g}: must be the GiB of one GPU, as in 24")
        if not self.flops > 0:
            raise ValueError(f"--tflops {self.flops / 1e12:g}: must be above 0")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"--utilisation {self.utilisation:g}: must be a share, above 0 and at most 1")
        if self.samples_per_second < 0:
            raise ValueError(f"--samples-per-second {self.samples_per_second:g}: must be above 0")


@dataclass(frozen=True)
class Plan:
    """costs, memory, divisions: by setting of model.activation_checkpointing."""

    recipe: Recipe
    machine: Machine
    size: Size
    batch: BatchSizes
    costs: dict[str, StepCost]
    memory: dict[str, GpuMemory]
    divisions: dict[str, list[Division]]
    speed: Speed
    cache: CacheCost
    host: HostMemory

    @property
    def cost(self) -> StepCost:
        """Of the recipe's own setting."""
        return self.costs[self.recipe.model.activation_checkpointing]

    @property
    def peak(self) -> int:
        return self.memory[self.recipe.model.activation_checkpointing].peak

    @property
    def fits(self) -> bool:
        return self.peak <= self.machine.memory * GIB


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Runs a micro-step of the recipe for each setting of recomputation, on tensors without values.

    Raises ValueError where the global batch does not divide.
    """
    batch = BatchSizes(recipe.train.effective_batch, recipe.train.micro_batch, machine.gpus)
    size = largest_size(recipe)
    step = MicroStep(recipe, size)
    costs = costs_by_recomputation(step, batch.micro)
    own = costs[recipe.model.activation_checkpointing]
    speed = estimate_speed(own, machine.flops, machine.utilisation, machine.gpus)
    if machine.samples_per_second:
        speed = Speed(speed.gpu, speed.host, machine.samples_per_second)
    room = int(machine.memory * GIB)
    parameters = sum(p.numel() for p in step.roles.model.parameters())
    return Plan(
        recipe=recipe,
        machine=machine,
        size=size,
        batch=batch,
        costs=costs,
        memory={name: gpu_memory(recipe, cost, machine.gpus) for name, cost in costs.items()},
        divisions={name: list(divisions(recipe, cost, machine.gpus, room)) for name, cost in costs.items()},
        speed=speed,
        cache=cache_cost(recipe, step.config, size, step.encoding_flops()),
        host=host_memory(recipe, step.config, size, parameters, machine.gpus),
    )


def largest_size(recipe: Recipe) -> Size:
    """The picture size of the recipe that has most pixels."""
    return max(image_sizes(recipe.data), key=lambda size: size[0] * size[1])


def memory_warning(recipe: Recipe, gpus: int, total: int) -> str:
    """One line if the recipe will not fit into `total` bytes of each GPU, else empty.

    Runs one micro-step on tensors without values, which takes seconds for the official size. Small models and what
    cannot be planned are passed over.
    """
    if load_model_config(recipe.model.config).unet.model_channels < LEAST_CHANNELS:
        return ""
    try:
        cost = MicroStep(recipe, largest_size(recipe)).run(recipe.train.micro_batch)
    except UnplannableError:
        return ""
    peak = gpu_memory(recipe, cost, gpus).peak
    if peak <= total:
        return ""
    setting = recipe.model.activation_checkpointing
    more = RECOMPUTATIONS[-1] if setting != RECOMPUTATIONS[-1] else ""
    less = f", or model.activation_checkpointing={more}" if more else ""
    return (
        f"about {peak / GIB:.1f} GiB are needed on each GPU, and it has {total / GIB:.1f}: lower train.micro_batch="
        f"{recipe.train.micro_batch}{less}; launch/plan.py says what fits"
    )


def count_pictures(recipe: Recipe, given: int | None, most_bytes: int = 100 * 2**20) -> int | None:
    """Of the recipe's data, as far as that is known without reading for long: `given`, what is drawn, or what the items
    of small annotation files are. None: unknown."""
    if given is not None or not recipe.data.sources:
        return recipe.data.synthetic.count if given is None else given
    files = [Path(source) for source in recipe.data.sources]
    if not all(file.is_file() for file in files) or sum(file.stat().st_size for file in files) > most_bytes:
        return None
    return sum(file.read_bytes().count(b'"img_name"') for file in files)
