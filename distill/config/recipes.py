"""Recipes as files: read, overridden by `key=value`, checked, written. Every mistake is one line that names the key.

Resolution order: the dataclass defaults, the recipe file, the overrides. A recipe is an OmegaConf structured config, so
an unknown key or a value of the wrong type is an error that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from anytext2.core.resources import find_shipped, resource
from distill.config.schema import Recipe
from distill.diffusion.samplers import SamplerName
from distill.diffusion.sampling import SamplerOptions
from distill.losses.terms import TERMS, TermConfig
from distill.objectives import OBJECTIVES

DEFAULT_RECIPE = resource("launch/recipes/demo.yaml")


def objective_config(recipe: Recipe) -> Any:
    """The validated Config of the recipe's objective.

    Raises ValueError for an unknown objective or an unknown or impossible option of it.
    """
    options = dict(recipe.objective)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}: one of {', '.join(OBJECTIVES)}")
    terms = options.pop("terms", None)
    schema = OmegaConf.structured(OBJECTIVES[name].Config)
    config = _to_object(_merge(schema, DictConfig(options), "objective"), "objective")
    if terms:
        if not hasattr(config, "terms"):
            raise ValueError(f"objective.terms: objective {name} trains no student, so no terms can be added to it")
        config.terms = _terms(terms)
    return config


def _terms(given: Any) -> dict[str, TermConfig]:
    """The configs of objective.terms, by name. Raises ValueError as `objective_config` does."""
    if not isinstance(given, dict):
        raise ValueError(f"objective.terms={given!r}: a mapping is needed, as in {{focal_frequency: {{weight: 0.05}}}}")
    found: dict[str, TermConfig] = {}
    for name, options in given.items():
        where = f"objective.terms.{name}"
        if name not in TERMS:
            raise ValueError(f"{where}: there is no such term; there are {', '.join(TERMS)}")
        if not isinstance(options, dict):
            raise ValueError(f"{where}={options!r}: a mapping is needed, as in {{weight: 0.05}}")
        # The schema's own values are not checked: a weight must be given.
        schema = OmegaConf.create(OmegaConf.structured(TERMS[name].Config))
        found[name] = _to_object(_merge(schema, DictConfig(options), where), where)
    return found


def student_sampler(recipe: Recipe) -> SamplerName:
    """The sampler that the recipe's objective trains a student for; LCM's where it trains none."""
    sampler: SamplerName = getattr(OBJECTIVES[recipe.objective["name"]], "student_sampler", "consistency")
    return sampler


def sampling_options(recipe: Recipe) -> SamplerOptions:
    """What the student's sampler must share with the recipe's objective."""
    trained = objective_config(recipe)
    names = [field.name for field in fields(SamplerOptions) if hasattr(trained, field.name)]
    return SamplerOptions(**{name: getattr(trained, name) for name in names})


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, a file or a shipped one (None: the dataclasses' defaults), and applies `key=value` overrides.

    Raises ValueError in one line for a missing or malformed file, an unknown key, or an impossible value.
    """
    merged = OmegaConf.structured(Recipe)
    if path is not None:
        merged = _merge(merged, _read_yaml(path), f"--config {path}")
        _to_object(merged, f"--config {path}")
    for item in overrides:
        layer = _parse_override(item)
        _leave_objective(merged, layer)
        merged = _merge(merged, layer, f"override {item}")
    recipe: Recipe = _to_object(merged, "override")
    _check_pairs(recipe)
    return recipe


def _check_pairs(recipe: Recipe) -> None:
    """Raises ValueError for values that are possible alone but not together."""
    config = objective_config(recipe)
    if getattr(config, "target_ema", False) and recipe.train.ema_decay == 0:
        raise ValueError("objective.target_ema=true: the average is kept with train.ema_decay; 0.95 is usual")
    if hasattr(OBJECTIVES[recipe.objective["name"]], "turn"):
        two = f"objective {recipe.objective['name']} trains two adapters in turn"
        if recipe.train.optimizer != "adamw":
            raise ValueError(f"train.optimizer={recipe.train.optimizer}: {two}, which only adamw can")
        if recipe.model.activation_checkpointing:
            # The backward pass would recompute the fake score's forward with the student's adapter.
            raise ValueError(f"model.activation_checkpointing=true: {two}, which cannot be recomputed; set it to false")
    if recipe.model.planted == "writenet_sees_noise" and "attention_mass" in getattr(config, "terms", {}):
        raise ValueError(
            "objective.terms.attention_mass: with model.planted=writenet_sees_noise the WriteNet has no call of its "
            "own to look at; leave one of them out"
        )
    if recipe.eval.every:
        require_supported_steps(recipe, recipe.eval.steps, "eval.steps")
    if recipe.log.preview_every:
        require_supported_steps(recipe, recipe.log.preview_steps, "log.preview_steps")


def require_supported_steps(recipe: Recipe, steps: int, where: str, sampler: str = "") -> None:
    """Raises ValueError where the recipe's student has not learned to sample in so many steps.

    sampler: empty for its objective's own.
    """
    config = objective_config(recipe)
    grid = getattr(config, "solver_steps", None)
    if grid is not None and steps > grid and sampler != "ddim":
        raise ValueError(f"{where}={steps}: the student's grid has {grid} times (objective.solver_steps)")
    phases = _phases(config)
    if phases is not None and sampler in ("", "phased") and max(phases, steps) % min(phases, steps):
        fitting = [n for n in range(1, 2 * phases + 1) if max(phases, n) % min(phases, n) == 0]
        raise ValueError(
            f"{where}={steps}: does not divide the student's {phases} phases (objective.phases or objective.steps) and "
            f"is no multiple of them; {', '.join(map(str, fitting))} ... do"
        )


def supported_steps(recipe: Recipe, steps: Sequence[int]) -> list[int]:
    """Those of `steps` that the recipe's student can be sampled in."""
    found = []
    for n in steps:
        try:
            require_supported_steps(recipe, n, "steps")
        except ValueError:
            continue
        found.append(n)
    return found


def default_steps(recipe: Recipe) -> int:
    """What the recipe's student is drawn in where nothing is said: eval.steps, or its phases where those do not fit."""
    phases = _phases(objective_config(recipe))
    return recipe.eval.steps if phases is None or supported_steps(recipe, [recipe.eval.steps]) else phases


def _phases(config: object) -> int | None:
    """The number of steps that a student is for, where its objective has one."""
    return getattr(config, "phases", getattr(config, "steps", None))


def _leave_objective(merged: DictConfig, layer: DictConfig) -> None:
    """Where `layer` names another objective, the options that it does not have are taken out of `merged`.

    What both have, as the range of guidance, stays as the recipe says.
    """
    given = layer.get("objective")
    name = given.get("name") if isinstance(given, DictConfig) else None
    if name not in OBJECTIVES or name == merged.objective.get("name"):
        return
    known = {field.name for field in fields(OBJECTIVES[name].Config)}
    for option in [key for key in merged.objective if key not in known]:
        del merged.objective[option]


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


def _merge(base: DictConfig, layer: DictConfig, where: str) -> DictConfig:
    """`base` with the values of `layer` over it. Raises ValueError naming the key that does not fit."""
    try:
        return cast(DictConfig, OmegaConf.merge(base, layer))
    except (OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"{where}: {_explained(error, _culprit(base, layer))}") from error


def _to_object(merged: DictConfig, where: str) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {_explained(error, '')}") from error
    except ValueError as error:  # from the sections' own checks, which name the field
        raise ValueError(f"{where}: {error}") from error


def _culprit(base: DictConfig, layer: DictConfig) -> str:
    """The path of the first value of `layer` that alone cannot be laid over `base` (OmegaConf does not always tell)."""
    for key, value in cast(dict[str, Any], OmegaConf.to_container(layer)).items():
        try:
            OmegaConf.merge(base, DictConfig({key: value}))
        except (OmegaConfBaseException, TypeError):
            inner = base.get(key) if key in base else None
            if isinstance(inner, DictConfig) and isinstance(value, dict):
                return f"{key}.{_culprit(inner, DictConfig(value))}"
            return str(key)
    return ""


def _explained(error: Exception, culprit: str) -> str:
    """The key, what is wrong with it and, where there is no such key, those that there are; one line."""
    key = getattr(error, "full_key", None) or culprit
    cause = str(getattr(error, "msg", None) or error).split("\n")[0]
    parent = getattr(error, "parent_node", None)
    if isinstance(error, ConfigKeyError) and isinstance(parent, DictConfig):
        cause += f"; known there: {', '.join(map(str, parent))}"
    return f"{key}: {cause}" if key else cause
