"""The command lines of the commands around a run: migrate, inspect_modules, plan. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_migrate(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/migrate.py. `old` is all that follows its options."""
    parser = argparse.ArgumentParser(
        description="Make a recipe of a YAML file or a command line of the earlier scripts.",
        epilog="example: migrate.py --out mine.yaml accelerate launch train_lcm_anytext_v2_4.py --w_min 5 --w_max 15",
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the recipe; default: runs/recipes/<name of the YAML file>.yaml")
    add("--table", action="store_true", help="print all old keys, with what became of each, and end")
    add("old", nargs=argparse.REMAINDER, metavar="OLD.yaml | COMMAND ...", help="options of this command come before")
    return parser.parse_args(argv)
