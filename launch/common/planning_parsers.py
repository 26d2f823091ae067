"""The command lines of the commands around a run: migrate, inspect_modules, plan. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.common.command_help import command_parser


def parse_migrate(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/migrate.py. `old` is all that follows its options."""
    parser = command_parser(
        "Make a recipe of a YAML file or a command line of the earlier scripts.",
        "python launch/migrate.py --out mine.yaml accelerate launch train_lcm_anytext_v2_4.py --w_min 5 --w_max 15",
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the recipe; default: runs/recipes/<name of the YAML file>.yaml")
    add("--table", action="store_true", help="print all old keys, with what became of each, and end")
    add("old", nargs=argparse.REMAINDER, metavar="OLD.yaml | COMMAND ...", help="options of this command come before")
    return parser.parse_args(argv)


def parse_inspect(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/inspect_modules.py."""
    parser = command_parser(
        "Show the layers of a model by family, and what a LoRA adapts. Needs no weights.",
        "python launch/inspect_modules.py --targets decoder --out mine.txt",
        "Then train with lora.targets=mine.txt.",
    )
    add = parser.add_argument
    add("--model", default="sd15", metavar="NAME", help="model config: sd15, tiny or a YAML file; default %(default)s")
    add("--rank", type=int, default=64, metavar="R", help="of the LoRA; default %(default)s")
    add(
        "--targets",
        default="paper",
        metavar="NAME",
        help="as lora.targets: preset, pattern or file; default %(default)s",
    )
    add(
        "--names",
        type=Path,
        metavar="FILE",
        help="module paths, as in target_modules_list.txt; those that exist are kept",
    )
    add(
        "--adapter",
        type=Path,
        metavar="PATH",
        help="an adapter's folder or file: its layers, and those without a place",
    )
    add("--weights", type=Path, metavar="FILE", help="a checkpoint: how its keys differ from the model's")
    out = "list of layers that lora.targets takes; default %(default)s"
    add("--out", type=Path, default=Path("runs/inspect/target_modules_list.txt"), metavar="FILE", help=out)
    return parser.parse_args(argv)


def parse_plan(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/plan.py. What the card gives is None where it is not given."""
    parser = command_parser(
        "Say before a run how much memory and time it takes, and what fits. Needs no GPU, weights or data.",
        "python launch/plan.py launch/recipes/rtx4090x3.yaml --gpus 3 --card rtx4090 train.micro_batch=16",
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="a file of launch/recipes, or your own")
    add("--gpus", type=int, default=3, metavar="N", help="in one machine; default %(default)s")
    add("--card", default="", metavar="NAME", help="as rtx4090, which is the default")
    add("--memory", type=float, metavar="GIB", help="of one GPU; default: the card's")
    add(
        "--tflops", type=float, metavar="T", help="fp16 matrix products of one GPU, 10^12 a second; default: the card's"
    )
    add(
        "--utilisation", type=float, metavar="SHARE", help="of those that is reached; default 0.21, measured on an H200"
    )
    add("--samples-per-second", type=float, default=0.0, metavar="S", help="of all GPUs, measured; default: estimated")
    add("--pictures", type=int, metavar="N", help="of the data set; default: counted where the files are small")
    add("overrides", nargs="*", metavar="key=value", help="recipe values, as in train.micro_batch=16")
    return parser.parse_intermixed_args(argv)
