"""Micro-steps on a GPU: built at the official size within seconds, on each fast path, and measured."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.memory_format import use_gpu_format
from distill.compilation.intercept import Switch
from distill.compilation.setup import make_compilation, release_networks
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from distill.inference.model import make_model, make_schedule
from distill.runtime.world import World
from distill.training.build import make_objective, make_roles
from launch.bench.gpu.kernels import Kernel, busy_seconds, matrix_seconds, record_kernels
from launch.bench.gpu.sections import without_paths
from launch.bench.measure import count_flops, synchronize, weight_bytes
from launch.bench.workload import MicroStep, Workload, load_batch, with_latents

PRODUCTION = Path("rtx4090x3.yaml")
GIB = 2**30
WARM_UP = 2


@dataclass(frozen=True)
class Plan:
    """What is measured. batch: the micro-batch of all comparisons; batches: of the table; side: of matrices."""

    overrides: tuple[str, ...] = ("model.config=sd15", "model.weights=filled")
    pixels: int = 512
    batch: int = 8
    batches: tuple[int, ...] = (8, 4, 1, 2, 16)
    peer_batches: tuple[int, ...] = (8, 4)
    sampling_batches: tuple[int, ...] = (1, 4)
    repeats: int = 5
    side: int = 8192

    def recipe(self, *overrides: str) -> Recipe:
        """The production recipe at this size."""
        usual = (f"data.options.resolution={self.pixels}", "model.activation_checkpointing=none")
        return load_recipe(find_recipe(PRODUCTION), [*usual, *self.overrides, *overrides])


TINY = Plan(
    ("model.config=tiny", "model.weights=embedded"), 64, 2, (2, 1), (2,), sampling_batches=(1,), repeats=1, side=128
)
"""Seconds on a CPU: shows that every section works."""


class Steps:
    """The micro-steps of one model, whose weights are drawn on the device unless the recipe names a file."""

    def __init__(self, plan: Plan, dtype: torch.dtype, folder: Path, device: torch.device) -> None:
        self.plan, self.dtype, self.device, self._folder = plan, dtype, device, folder
        self.recipe = plan.recipe()
        model = _make_model(self.recipe, dtype, device)
        self.roles, named = make_roles(model, make_objective(self.recipe, make_schedule(model.cfg)), self.recipe)
        self.roles.wrapped.to(device=device, dtype=dtype)
        use_gpu_format(self.roles.model)
        self._trained = tuple(p for _, p in named)
        self._workloads: dict[int, Workload] = {}

    def workload(self, batch: int) -> Workload:
        """A micro-batch of that size with its latents, in pinned memory as the loader gives it."""
        if batch not in self._workloads:
            loaded = with_latents(load_batch(self.recipe, batch, self._folder), self.roles.model, self.device)
            loaded = loaded.pin_memory() if self.device.type == "cuda" else loaded
            self._workloads[batch] = Workload(self.recipe, self.roles, loaded, self._trained, self.device)
        return self._workloads[batch]

    @cached_property
    def production_flops(self) -> int:
        """FLOPs of a sample of the production step."""
        step = self.workload(1).micro_step()
        step()  # fills what is kept for a whole run
        flops = count_flops(step)
        step.clear()
        return flops

    def recompute(self, setting: str) -> None:
        """See distill/config/schema.py."""
        for network in (self.roles.model.model.diffusion_model, self.roles.model.control_model):
            network.activation_checkpointing = setting

    @contextmanager
    def fast_path(self, mode: str, recipe: Recipe | None = None) -> Iterator[Switch]:
        """The production code's train.compile; afterwards the networks are as before, and its memory is free."""
        recipe = recipe or self.recipe
        recipe = replace(recipe, train=replace(recipe.train, compile=mode))
        try:
            yield make_compilation(recipe, self.roles, World(0, 0, 1, self.device))
        finally:
            release_networks(self.roles)


def _make_model(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> AnyText2:
    if recipe.model.weights not in ("filled", "embedded"):
        return make_model(recipe.model, recipe.seed)
    model = build_model(load_model_config(recipe.model.config), "meta", dtype).to_empty(device=device)
    _draw(model)
    return model


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Weights of about the size of trained ones, since a GPU's clock depends on the values. Takes no time there."""
    torch.manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() > 1:
            tensor.normal_(0.0, tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(0 if name.endswith(("bias", "running_mean")) else 1)


def measure_step(
    step: MicroStep,
    repeats: int,
    flops: int = 0,
    rate: float = 0.0,
    captures: bool = False,
    before: int | None = None,
) -> tuple[dict[str, Any], list[Kernel]]:
    """What a micro-step costs, and its kernels.

    flops: of a sample; rate: FLOPs a second of the card's matrix products. captures: the first steps allocate memory
    that stays in use (CUDA graphs), so the peak counts from before them; before: what was in use then, in bytes, where
    another step has captured already. Memory and kernels are measured on a GPU only. `fell_back` is true of a row whose
    fast path could not be made as a whole.
    """
    device = step.device
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines), _Peak(step, before) as peak:
        began = time.perf_counter()
        _timed(step)
        first = time.perf_counter() - began
        for _ in range(WARM_UP - 1):
            _timed(step)
        peak.start(keeps=captures)
        seconds, host = zip(*[_timed(step) for _ in range(repeats)], strict=True)
        allocated, reserved = peak.read()
        kernels = record_kernels(step, device)
        step.clear()
    median, notes = statistics.median(seconds), lines.getvalue().splitlines()
    busy = busy_seconds(kernels)
    row = {
        "samples": step.samples,
        "seconds": median,
        "samples_per_second": step.samples / median,
        "host_seconds": statistics.median(host),
        "first_seconds": first,
        "peak_gib": allocated,
        "reserved_gib": reserved,
        "busy": min(1.0, busy / median) if kernels else None,
        "busy_seconds": busy if kernels else None,
        "matrix_seconds": matrix_seconds(kernels) if kernels else None,
        "tflop_a_sample": flops / 1e12 or None,
        "utilisation": flops * step.samples / median / rate if flops and rate else None,
        "notes": "; ".join(map(without_paths, notes)),
        "fell_back": any("eagerly" in line for line in notes),
    }
    return row, kernels


def _timed(step: MicroStep) -> tuple[float, float]:
    """Seconds of a step, and until the host had given all of it to the device."""
    synchronize(step.device)
    began = time.perf_counter()
    step()
    host = time.perf_counter() - began
    synchronize(step.device)
    return time.perf_counter() - began, host


class _Peak(AbstractContextManager["_Peak"]):
    """The most memory of a step in GiB, as if the weights of its network were all that there is beside it."""

    def __init__(self, step: MicroStep, before: int | None) -> None:
        self._device, self._weights = step.device, weight_bytes(step.network)
        step.clear()
        used = memory_in_use(self._device)
        self._before = used if before is None else before
        self._kept = 0
        self.start()

    def start(self, keeps: bool = False) -> None:
        """Counts from now on. keeps: the peak until now, too."""
        if self._device.type == "cuda":
            self._kept = torch.cuda.max_memory_allocated(self._device) if keeps else 0
            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> tuple[float | None, float | None]:
        """Of tensors, and with what the allocator holds back."""
        if self._device.type != "cuda":
            return None, None
        most = max(self._kept, torch.cuda.max_memory_allocated(self._device) + held_by_graphs())
        found = (most, torch.cuda.max_memory_reserved(self._device))
        allocated, reserved = ((value - self._before + self._weights) / GIB for value in found)
        return allocated, reserved

    def __exit__(self, *error: object) -> None:
        return None


def held_by_graphs() -> int:
    """Bytes that CUDA graphs keep for the values between their kernels: not allocated, and no use to anybody else."""
    pools = (segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) != (0, 0))
    return sum(segment["total_size"] - segment["allocated_size"] for segment in pools)


def memory_in_use(device: torch.device) -> int:
    """Bytes of tensors on a GPU, after what can be freed is freed; 0 on a CPU."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def add_row(
    rows: dict[str, Any], name: str, measure: Callable[[], tuple[dict[str, Any], list[Kernel]]]
) -> list[Kernel]:
    """Puts the row of `measure` under its name; a step that does not fit into the memory is a row that says so."""
    try:
        rows[name], kernels = measure()
    except torch.cuda.OutOfMemoryError:
        rows[name], kernels = {"error": "does not fit"}, []
    row: Mapping[str, Any] = rows[name]
    if "error" in row:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    rate = row.get("error") or f"{row['samples_per_second']:.2f} samples/s, first step {row['first_seconds']:.1f} s"
    print(f"  {name}: {rate}" + (f" ({row['notes']})" if row.get("notes") else ""), flush=True)
    return kernels
