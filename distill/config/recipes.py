"""Recipes as files: read, overridden by `key=value`, validated, written. Every error is one line that names the key.

Resolution order: the dataclass defaults, the recipe file, the overrides. A recipe is an OmegaConf structured config, so
an unknown key or a value of the wrong type is an error that names it. Old spellings of keys are read, see aliases.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from anytext2.core.resources import find_shipped, resource, shell_command
from distill.adapters.roles import EMA
from distill.config.aliases import rename_keys
from distill.config.differences import require_known
from distill.config.merging import merge, to_object
from distill.config.objective import leave_objective
from distill.config.schema import Recipe
from distill.config.unknown_keys import refuse_unknown_keys
from distill.losses.terms import terms_with_attention
from distill.migration.old_files import is_old_file

DEFAULT_RECIPE = resource("launch/recipes/demo.yaml")


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, a file or a shipped one (None: the dataclasses' defaults), and applies `key=value` overrides.

    Raises ValueError in one line for a missing or malformed file, unknown keys (all of them), or an impossible value.
    """
    return resolve_recipe([] if path is None else [_read_yaml(path)], f"--config {path}", overrides)


def resolve_recipe(contents: Sequence[DictConfig], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of what was read from `where`, and of `key=value` overrides. Raises ValueError as `load_recipe`."""
    merged = OmegaConf.structured(Recipe)
    files = rename_keys(contents, where)
    layers = rename_keys([_parse_override(item) for item in overrides], "override")
    named = [f"override {item}" for item in overrides]
    refuse_unknown_keys([*((where, file) for file in files), *zip(named, layers, strict=True)])
    for from_file in files:
        merged = merge(merged, from_file, where)
        to_object(merged, where)
    for item, layer in zip(overrides, layers, strict=True):
        leave_objective(merged, layer)
        merged = merge(merged, layer, f"override {item}")
    recipe: Recipe = to_object(merged, "override")
    _check_pairs(recipe)
    return recipe


def _check_pairs(recipe: Recipe) -> None:
    """Raises ValueError for values that are possible alone but not together."""
    require_known(recipe.checkpoint.allow)
    config, name = recipe.objective_config, recipe.objective["name"]
    if any(adapter.name == EMA for adapter in config.second_adapters) and recipe.train.ema_decay == 0:
        raise ValueError("objective.target_ema=true: the average is kept with train.ema_decay; 0.95 is usual")
    if any(adapter.trained for adapter in config.second_adapters):
        two = f"objective {name} trains two adapters in turn"
        if recipe.train.optimizer != "adamw":
            raise ValueError(f"train.optimizer={recipe.train.optimizer}: {two}, which only adamw can")
        if (recompute := recipe.model.activation_checkpointing) != "none":
            # The backward pass would recompute the fake score's forward with the student's adapter.
            raise ValueError(
                f"model.activation_checkpointing={recompute}: {two}, which cannot be recomputed; set it to none"
            )
    if name == "recognize" and recipe.data.options.like_reference:
        raise ValueError(
            "data.options.like_reference=true: objective recognize must know each glyph line's font, which is random "
            "there; set it to false"
        )
    if recipe.model.fault_injection == "writenet_sees_noise" and (terms := terms_with_attention(recipe.student.terms)):
        raise ValueError(
            f"objective.terms.{terms[0]}: with model.fault_injection=writenet_sees_noise the WriteNet is not called "
            "apart from the UNet, so its attention cannot be recorded; leave one of them out"
        )
    if config.student is not None and recipe.eval.every:
        config.student.require_steps(recipe.eval.steps, "eval.steps")
    if config.student is not None and recipe.log.preview_every:
        config.student.require_steps(recipe.log.preview_steps, "log.preview_steps")


def find_recipe(path: Path) -> Path:
    """`path`, or the shipped recipe that it names, as in `rtx4090x3.yaml`. Raises ValueError in one line."""
    return find_shipped(path, "launch/recipes", "--config")


def _read_yaml(path: Path) -> DictConfig:
    file = find_recipe(path)
    try:
        from_file = OmegaConf.load(file)
    except Exception as error:  # OmegaConf passes the YAML parser's own exceptions through
        raise ValueError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(from_file, DictConfig):
        raise ValueError(f"--config {path}: a mapping of recipe keys is needed, found {type(from_file).__name__}")
    if is_old_file(OmegaConf.to_container(from_file)):
        raise ValueError(
            f"--config {path}: this is an old file, of the earlier scripts; make a recipe of it: "
            f"{shell_command('launch/migrate.py', path)}"
        )
    return from_file


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML, readable by `load_recipe`."""
    OmegaConf.save(OmegaConf.structured(recipe), path)


def _parse_override(item: str) -> DictConfig:
    if "=" not in item:
        raise ValueError(f"override {item!r}: write it as key=value, as in train.max_steps=100")
    try:
        return OmegaConf.from_dotlist([item])
    except (YAMLError, OmegaConfBaseException, LookupError) as error:  # what OmegaConf's own parsing lets through
        cause = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"override {item!r}: cannot be read as key=value in YAML: {cause}") from error
