"""Says before a run what it takes: `python launch/plan.py launch/recipes/rtx4090x3.yaml --gpus 3 --card rtx4090`.

Runs a micro-step of the recipe on tensors without values, in less than a minute on two cores, and prints the memory of
a GPU by part, the arithmetic, the time, the batches that fit, the feature cache and the memory of the host. Needs no
GPU, weights or data. docs/PLANNING.md says how exact that is. Exit code 0: it fits; 1: it does not; 2: a value is
wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.common.cli import is_command, require_at_least, run_command
from launch.common.planning_parsers import parse_plan as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.planning.plan import Machine, count_pictures, make_plan
from distill.planning.report import report
from distill.planning.speed import CARDS, UTILISATION
from launch.common.data_options import resolve_recipe

DEFAULT_CARD = "rtx4090"
DOES_NOT_FIT = 1


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Prints the plan. Raises ValueError in one line."""
    require_at_least(args, 1, "gpus", "pictures")
    machine = machine_of(args)
    recipe = resolve_recipe(args.recipe, args.overrides)
    plan = make_plan(recipe, machine)
    for line in report(plan, count_pictures(recipe, args.pictures)):
        print(line)
    return 0 if plan.fits else DOES_NOT_FIT


def machine_of(args: argparse.Namespace) -> Machine:
    """What the options say of the GPUs. A card of no known name needs --memory and --tflops."""
    name = args.card or DEFAULT_CARD
    card = CARDS.get(name)
    if card is None and (args.memory is None or args.tflops is None):
        raise ValueError(f"--card {name}: known are {', '.join(CARDS)}; of others give --memory and --tflops")
    return Machine(
        gpus=args.gpus,
        memory=card.memory if card and args.memory is None else args.memory,
        flops=card.flops if card and args.tflops is None else args.tflops * 1e12,
        utilisation=UTILISATION if args.utilisation is None else args.utilisation,
        samples_per_second=args.samples_per_second,
    )


if __name__ == "__main__":
    raise SystemExit(main())
