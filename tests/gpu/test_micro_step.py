"""Micro-steps on a GPU: no waiting, the same values on every fast path, and no more memory than allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anytext2.model.memory_format import use_gpu_format
from distill.compilation.blocks import BlockPrograms
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import Switch, release
from distill.compilation.setup import make_compilation, step_networks
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from distill.data.loader import LoadedBatch
from distill.runtime.world import World
from launch.bench.savings import pictures_encoded
from launch.bench.workload import MicroStep, Workload, load_batch, make_workload, with_latents
from tests.helpers.models.mini_model import write_mini
from tests.helpers.models.parity import assert_same
from tests.helpers.models.rerun import Rerun

pytestmark = [pytest.mark.gpu, pytest.mark.heavy]

SIZES = (64, 96)
"""Pixels of two buckets."""


def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_recipe(find_recipe(Path(name)), list(overrides))


def half_on(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def pinned(workload: Workload) -> Workload:
    """With the micro-batch as the loader's pinning thread gives it."""
    if workload.device.type != "cuda":
        return workload
    return replace(workload, loaded=workload.loaded.pin_memory())


def randomise_adapter(workload: Workload) -> None:
    """LoRA's B is zero at first, and A would get no gradient."""
    generator = torch.Generator().manual_seed(0)
    for p in workload.trained:
        p.data.copy_(0.02 * torch.randn(p.shape, generator=generator))


@contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("is_online", [False, True], ids=["cached", "online"])
@pytest.mark.parametrize("name", ["demo.yaml", "rtx4090x3.yaml"])
def test_the_host_never_waits(device: torch.device, tmp_path: Path, name: str, is_online: bool) -> None:
    overrides = ("model.config=tiny", "model.weights=embedded", "data.options.resolution=64")
    workload = pinned(make_workload(recipe_of(name, *overrides), 2, half_on(device), tmp_path, device))
    use_gpu_format(workload.roles.model)
    step = workload.micro_step()
    step = replace(step, context=pictures_encoded) if is_online else step
    for _ in range(2):  # the first ones copy what is kept for a whole run
        step()
    with waiting_is_an_error(device):
        loss = step()
    assert bool(torch.isfinite(loss))
    assert all(p.grad is not None for p in workload.trained)


class Parity:
    """A workload in float32, micro-batches of two sizes, and losses and gradients of steps on them in turn."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        options = ("objective.name=consistency", "objective.teacher_steps=1", "lora.rank=2", "lora.alpha=2")
        self.recipe = recipe_of("rtx4090x3.yaml", *write_mini(folder), *options, f"data.options.resolution={SIZES[0]}")
        self.workload = make_workload(self.recipe, 2, torch.float32, folder, device)
        randomise_adapter(self.workload)
        use_gpu_format(self.workload.roles.model)
        self.loaded = [self.workload.loaded, self._of_size(SIZES[1], folder)]

    def _of_size(self, pixels: int, folder: Path) -> LoadedBatch:
        options = replace(self.recipe.data.options, resolution=pixels)
        recipe = replace(self.recipe, data=replace(self.recipe.data, options=options))
        return with_latents(load_batch(recipe, 2, folder), self.workload.roles.model, self.workload.device)

    def run(self, path: Switch) -> list[torch.Tensor]:
        """Two steps in each size, whose weights differ."""
        found = []
        for turn in range(2):
            for loaded in self.loaded:
                loss = self.step(loaded, path)()
                found += [loss, *(p.grad for p in self.workload.trained if p.grad is not None)]
            with torch.no_grad():
                for p in self.workload.trained:
                    p.add_(0.01 if turn == 0 else -0.01)
        return found

    def step(self, loaded: LoadedBatch, path: Switch) -> MicroStep:
        return replace(replace(self.workload, loaded=loaded).micro_step(), context=path.active)

    def path(self, kind: str) -> BlockPrograms | GraphedCalls:
        """`blocks` compiles the middle of each network, because all blocks would take minutes. `graphs` are the
        production code's on a GPU. On a CPU torch traces without translating, and graphs compute again."""
        roles, device = self.workload.roles, self.workload.device
        if kind == "blocks":
            programs = BlockPrograms(pytest.fail, "inductor" if device.type == "cuda" else "eager")
            programs.compile([network.get_submodule("middle_block") for network in step_networks(roles)])
            return programs
        if device.type == "cuda":
            recipe = replace(self.recipe, train=replace(self.recipe.train, compile=kind))
            path = make_compilation(recipe, roles, World(0, 0, 1, device))
            assert isinstance(path, GraphedCalls)
            return path
        calls = GraphedCalls(Rerun(), pytest.fail, lambda: roles.active)
        calls.capture(step_networks(roles))
        return calls


@pytest.mark.parametrize("kind", ["blocks", "graphs"])
def test_a_fast_path_has_the_losses_and_gradients_of_the_slow_one(
    device: torch.device, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teacher without adapter, student with and without gradients, two picture sizes."""
    parity = Parity(tmp_path, device)
    expected = parity.run(Switch())
    path = parity.path(kind)
    elsewhere = [p.sum() for p in parity.workload.trained]  # ties the parameters to the stream of today
    found = parity.run(path)
    assert path.count > 4
    assert "eagerly" not in capsys.readouterr().out
    assert len(found) == 4 * (1 + len(parity.workload.trained))
    # Generated kernels round differently, and some gradients are what large numbers leave when they cancel.
    assert_same(found, expected, 1e-3 if kind == "graphs" else 5e-3)
    del elsewhere
    release(parity.workload.roles.model)
    assert_same(parity.run(Switch()), expected, 1e-3)


def test_the_allocator_can_be_limited_and_a_production_step_needs_less(cuda: torch.device, tmp_path: Path) -> None:
    limit, total = 2 * 2**30, torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / total, cuda)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(limit + 2**20, dtype=torch.uint8, device=cuda)
        overrides = ("model.config=tiny", "model.weights=embedded", "data.options.resolution=128")
        workload = make_workload(recipe_of("rtx4090x3.yaml", *overrides), 8, torch.float16, tmp_path, cuda)
        use_gpu_format(workload.roles.model)
        torch.cuda.reset_peak_memory_stats(cuda)
        workload.micro_step()()
        assert torch.cuda.max_memory_reserved(cuda) <= limit
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)


@pytest.mark.parametrize("setting", ["selective", "all"])
def test_recomputation_changes_no_value(device: torch.device, tmp_path: Path, setting: str) -> None:
    parity = Parity(tmp_path, device)
    expected = parity.run(Switch())
    for network in (parity.workload.roles.model.model.diffusion_model, parity.workload.roles.model.control_model):
        network.activation_checkpointing = setting
    assert_same(parity.run(Switch()), expected, 1e-3)
