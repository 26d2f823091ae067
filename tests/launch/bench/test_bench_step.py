"""The number of operations of a micro-step, which is what a GPU waits for at small batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.config.recipes import find_recipe, load_recipe
from launch.bench import bench_step
from launch.bench.operations import OperationCounter, counted_reads

PRODUCTION = find_recipe(Path("rtx4090x3.yaml"))
STEP = ["data.options.resolution=128", "model.activation_checkpointing=false"]


def test_what_is_counted() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    with OperationCounter() as forward:
        y = (x * 2).sum()
    with OperationCounter() as backward:
        y.backward()
    assert forward.counts == {"aten.mul": 1, "aten.sum": 1} and backward.total > 0
    with counted_reads() as reads:
        assert y.item() == 8.0 and bool(y > 1) and x.tolist()
    assert reads == {"item": 1, "__bool__": 1, "tolist": 1} and y.item() == 8.0


@pytest.mark.heavy
def test_a_larger_batch_has_hardly_more_operations(tmp_path: Path) -> None:
    """Only the random draws of each sample, and a few changes of shape that are free for one sample."""
    recipe = load_recipe(PRODUCTION, [*STEP, "model.config=tiny"])
    one, four = (bench_step.count_operations(recipe, batch, torch.float32, tmp_path) for batch in (1, 4))
    assert four["together"] - one["together"] < 30


@pytest.mark.slow
def test_the_production_step_stays_below_its_limit(tmp_path: Path) -> None:
    """24,246 before guidance was batched, the teacher had no adapters' layers and LoRA layers were fused."""
    found = bench_step.count_operations(load_recipe(PRODUCTION, STEP), 1, torch.bfloat16, tmp_path)
    assert found["together"] <= 12_000, found
    assert found["reads"] == 0, found["reads_by_name"]
