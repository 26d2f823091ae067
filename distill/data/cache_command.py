"""The command that builds the feature cache which a run wants: printed where a store is missing or does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from anytext2.core.resources import shell_command
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe

_SECTIONS = ("data.options", "data.buckets", "data.max_faulty", "data.max_faulty_lines")
_WITH_MODEL = ("model.config", "model.weights", "model.parts", "seed")
"""Keys that decide what is stored; of the model only where latents or contexts are."""


def build_cache_command(recipe: Recipe, sources: Sequence[Path]) -> str:
    """A line for a shell that builds the store `data.cache` of this recipe from these annotation files.

    It names what the embedded recipe, which the builder takes, has otherwise.
    """
    assert recipe.data.cache is not None
    encoded = [f"--{kind}" for kind in ("latents", "captions") if getattr(recipe.data, kind) == "cache"]
    usual = load_recipe(DEFAULT_RECIPE)
    keys = (*_SECTIONS, *_WITH_MODEL) if encoded else _SECTIONS
    changed = [f"{name}={_plain(value)}" for key in keys for name, value in _changed(key, recipe, usual)]
    if recipe.data.buckets:
        changed.append("data.latents=encode")  # the embedded recipe keeps them in memory, which is for one size
    out = Path(recipe.data.cache)
    out = out / "features.lmdb" if out.is_dir() else out
    return shell_command("launch/build_lmdb_cache.py", *sources, "--out", out, *encoded, *changed)


def _changed(key: str, recipe: Recipe, usual: Recipe) -> Iterator[tuple[str, object]]:
    """The key and its value, or those of its section, where `usual` has another."""
    here, there = _value(recipe, key), _value(usual, key)
    if key == "data.options":
        for field in fields(recipe.data.options):
            yield from _changed(f"{key}.{field.name}", recipe, usual)
    elif here != there:
        yield key, here


def _value(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _plain(value: object) -> str:
    """The value as a recipe's override has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
