"""The command line of the tools that read a dataset: annotation files, `key=value` options and a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.config.recipes import load_recipe
from distill.config.schema import Recipe

_SECTION = "data."


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds `items` (files and options) and `recipe`."""
    parser.add_argument(
        "items",
        nargs="*",
        metavar="JSON | key=value",
        help="annotation files (default: the recipe's), and values of data.options, as in max_lines=3",
    )
    parser.add_argument(
        "--recipe", "--config", type=Path, metavar="YAML", help="take data.options from it; default: their defaults"
    )


def resolve_data(items: Sequence[str], recipe_file: Path | None) -> tuple[list[Path], Recipe]:
    """The annotation files and the recipe that a command line asks for.

    Without a recipe file everything has its default. An item is an option where it holds a '=' and no file has that
    name; its key is one of data.options, or begins with 'data.'. Raises ValueError for an unknown option, an impossible
    value, or where no existing file is named.
    """
    options = [item for item in items if "=" in item and not Path(item).is_file()]
    recipe = load_recipe(recipe_file, [_full_key(item) for item in options])
    sources = [Path(item) for item in items if item not in options] or [Path(s) for s in recipe.data.sources]
    if not sources:
        raise ValueError("no annotation file given; name one, as in runs/drawn/data.json")
    for source in sources:
        if not source.is_file():
            raise ValueError(f"{source}: annotation file does not exist")
    return sources, recipe


def _full_key(item: str) -> str:
    return item if item.startswith(_SECTION) else f"{_SECTION}options.{item}"
