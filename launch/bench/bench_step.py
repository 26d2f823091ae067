"""Counts the operations of one micro-step: `python launch/bench/bench_step.py [--tiny] [--batch N] [key=value ...]`.

The quick part of bench.py: the production recipe's step (official size) on drawn pictures of 128 px, because the number
of operations does not depend on the size. Writes runs/bench/step.json. Needs 5 GB of memory and a minute; with --tiny
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from launch.bench.bench import FOLDER, PRODUCTION, write_results
from launch.bench.measure import describe
from launch.bench.workload import make_workload
from launch.common.command_help import command_parser

SIZE = 128


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "Count the operations of one micro-step.", "python launch/bench/bench_step.py --tiny --batch 2"
    )
    parser.add_argument("--config", type=Path, default=PRODUCTION, metavar="YAML", help="recipe")
    parser.add_argument("--tiny", action="store_true", help="the tiny model instead of the official size")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples of the micro-batch")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values")
    args = parser.parse_intermixed_args(argv)
    size = ["model.config=tiny"] if args.tiny else []
    usual = [f"data.options.resolution={SIZE}", "model.activation_checkpointing=false", *size, *args.overrides]
    recipe = load_recipe(find_recipe(args.config), usual)
    dtype = torch.float32 if args.tiny else torch.bfloat16
    found = count_operations(recipe, args.batch, dtype, FOLDER)
    for name in ("inputs", "forward", "backward", "together", "reads"):
        print(f"{name:<10}{found[name]}")
    steps = {recipe.objective["name"]: found}
    settings = {"batch": args.batch, "pixels": SIZE, "dtype": str(dtype).removeprefix("torch."), "constant": True}
    sizes = {recipe.model.config: {"settings": settings, "steps": steps}}
    write_results(FOLDER, {"environment": describe(torch.device("cpu")), "sizes": sizes})
    print(f"wrote {FOLDER / 'step.json'}")
    return 0


def count_operations(recipe: Recipe, batch: int, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    """`MicroStep.profile` of the recipe's step with constants as weights; folder: for the drawn pictures."""
    step = make_workload(recipe, batch, dtype, folder, torch.device("cpu"), constant=True).micro_step()
    step()
    return step.profile()


if __name__ == "__main__":
    raise SystemExit(main())
