"""The recipe that a command uses, and the annotation files of the tools that read a dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe

_SECTIONS = {field.name for field in fields(Recipe)}


def resolve_recipe(config: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of --config, or the embedded one, with `key=value` overrides. Raises ValueError as `load_recipe`."""
    return load_recipe(config or DEFAULT_RECIPE, overrides)


def recipe_line(recipe: Recipe, file: Path | None) -> str:
    """Says which recipe a command uses (file: None for the embedded one), and what it says of samples."""
    options = recipe.data.options
    which = f"{DEFAULT_RECIPE.name}, the embedded default" if file in (None, DEFAULT_RECIPE) else str(file)
    drawn = f"{options.resolution} px, {options.max_lines} lines, ink_threshold {options.ink_threshold:g}"
    return f"recipe: {which}; {drawn}"


def resolve_data(args: argparse.Namespace, more: Sequence[str] = ()) -> tuple[list[Path], Recipe]:
    """The annotation files and the recipe that a command line asks for; says which recipe it is.

    args: of a parser with `items` and `config`. An item is an option where it holds a '=' and no file has that name;
    its key is one of data.options or any key of a recipe. more: options after those. Raises ValueError for an unknown
    option, an impossible value, or where no existing file is named.
    """
    config = _config(args)
    options = [item for item in args.items if "=" in item and not Path(item).is_file()]
    recipe = resolve_recipe(config, [_full_key(item) for item in (*options, *more)])
    if args.recipe is not None:
        print("--recipe is now --config", file=sys.stderr, flush=True)
    print(recipe_line(recipe, config), flush=True)
    sources = [Path(item) for item in args.items if item not in options] or [Path(s) for s in recipe.data.sources]
    if not sources:
        raise ValueError("no annotation file given; name one, as in runs/drawn/data.json")
    for source in sources:
        if not source.is_file():
            raise ValueError(f"{source}: annotation file does not exist")
    return sources, recipe


def _config(args: argparse.Namespace) -> Path | None:
    if args.recipe is None:
        return args.config  # type: ignore[no-any-return]
    if args.config is not None:
        raise ValueError("--recipe is the old name of --config; give one of them")
    return args.recipe  # type: ignore[no-any-return]


def _full_key(item: str) -> str:
    section = item.partition("=")[0].partition(".")[0]
    return item if section in _SECTIONS else f"data.options.{item}"
