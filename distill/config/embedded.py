"""The part of a recipe that says what a student is, as JSON values inside exported files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.recipes import resolve_recipe
from distill.config.schema import Recipe

_KEPT = ("name", "seed", "model.config", "model.weights", "data.options", "objective", "lora", "eval.steps")
_NOT_FILES = ("embedded", "filled", "scratch")


def recipe_to_values(recipe: Recipe) -> dict[str, Any]:
    """What a reader needs to sample the student. Names of weights files are left out: they are another machine's."""
    content: Any = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(recipe)))
    kept = OmegaConf.create({})
    for key in _KEPT:
        OmegaConf.update(kept, key, OmegaConf.select(content, key))
    if recipe.model.weights not in _NOT_FILES or recipe.model.parts:
        del kept.model["weights"]
    kept.lora.weights = ""
    values: dict[str, Any] = OmegaConf.to_container(kept)  # type: ignore[assignment]
    return values


def recipe_from_values(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an exported file, with `key=value` overrides. where: the file, for errors.

    Raises ValueError in one line, as `load_recipe` does.
    """
    return resolve_recipe([DictConfig(dict(values))], where, overrides)
