"""Counts the operations of one micro-step: `python launch/bench/bench_step.py [--tiny] [--batch N] [key=value ...]`.

Builds the production recipe's step (objective, LoRA, official size) on the CPU, without DeepSpeed, and runs it on drawn
pictures of 128 px: the number of operations does not depend on the size. The weights are constants, because their
values do not matter either. Writes runs/bench/step.json. Needs 5 GB of memory and a minute; with --tiny seconds.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anytext2.core.batch import collate
from anytext2.model.anytext2 import build_model, load_model_config
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.adapters.roles import AdapterRoles
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from distill.data.batch_sampler import SampleKey
from distill.data.latents import LatentSource
from distill.data.loader import LoadedBatch
from distill.inference.loading import load_dataset
from distill.inference.model import make_schedule
from distill.losses.step_input import StepInput
from distill.training.build import make_objective, make_roles, negative_contexts
from distill.training.inputs import StepInputs
from distill.training.trainer import TrainingStep
from launch.bench.operations import OperationCounter, counted_reads

FOLDER = Path("runs/bench")
SIZE = 128


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count the operations of one micro-step.")
    parser.add_argument("--config", type=Path, default=Path("rtx4090x3.yaml"), metavar="YAML")
    parser.add_argument("--tiny", action="store_true", help="the tiny model instead of the official size")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples of the micro-batch")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    size = ["model.config=tiny"] if args.tiny else []
    usual = [f"data.options.resolution={SIZE}", "model.activation_checkpointing=false", *size, *args.overrides]
    recipe = load_recipe(find_recipe(args.config), usual)
    found = count_operations(recipe, args.batch, torch.float32 if args.tiny else torch.bfloat16)
    for name in ("forward", "backward", "together", "reads"):
        print(f"{name:<10}{found[name]}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "step.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FOLDER / 'step.json'}")
    return 0


def count_operations(recipe: Recipe, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Operations of the forward and backward pass of one micro-step, and values read to the host, in all and by name.

    The second step is counted: the first one fills what is kept for a whole run.
    """
    step, roles = _make_step(recipe, dtype)
    loaded = load_batch(recipe, batch)
    inputs = StepInputs(0, torch.device("cpu"), LatentSource(roles.model, False), negative_contexts(recipe, roles))
    for _ in range(2):
        step.zero_grad(set_to_none=True)
        item: StepInput = inputs(loaded, 0)
        with counted_reads() as reads, OperationCounter() as forward:
            loss = step(item).loss
        with OperationCounter() as backward:
            loss.backward()
    return {
        "forward": forward.total,
        "backward": backward.total,
        "together": forward.total + backward.total,
        "reads": reads.total(),
        "batch": batch,
        "config": recipe.model.config,
        "objective": recipe.objective["name"],
        "by_name": {"forward": dict(forward.counts.most_common()), "backward": dict(backward.counts.most_common())},
        "reads_by_name": dict(reads),
    }


def _make_step(recipe: Recipe, dtype: torch.dtype) -> tuple[TrainingStep, AdapterRoles]:
    config = load_model_config(recipe.model.config)
    model = build_model(config, "meta", dtype).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(1e-3)
    objective = make_objective(recipe, make_schedule(config))
    roles, _ = make_roles(model, objective, recipe)
    step = TrainingStep(roles.wrapped, objective, roles).to(dtype)
    step.train()
    return step, roles


def load_batch(recipe: Recipe, count: int) -> LoadedBatch:
    """A micro-batch of drawn pictures."""
    folder = FOLDER / "step_data"
    if not (folder / "data.json").is_file():
        write_dataset(folder, 16, SyntheticConfig(size=SIZE), seed=0)
    dataset, _ = load_dataset([folder / "data.json"], recipe)
    keys = tuple(SampleKey(0, index) for index in range(count))
    return LoadedBatch(collate([dataset.sample(key.index, 0) for key in keys]), keys, Counter())


if __name__ == "__main__":
    raise SystemExit(main())
