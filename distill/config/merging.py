"""OmegaConf's structured configs with errors of one line that name the key."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException


def merge(base: DictConfig, layer: DictConfig, where: str) -> DictConfig:
    """`base` with the values of `layer` over it. Raises ValueError naming the key that does not fit.

    Both are used up: the result takes them over, because copying them would be half of the time to read a recipe.
    """
    try:
        return cast(DictConfig, OmegaConf.unsafe_merge(base, layer))
    except (OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"{where}: {_explained(error, _culprit(base, layer))}") from error


def to_object(merged: DictConfig, where: str) -> Any:
    """The dataclass that `merged` describes. Raises ValueError where a value or the dataclass's own checks fail."""
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {_explained(error, '')}") from error
    except ValueError as error:  # from the sections' own checks, which name the field
        raise ValueError(f"{where}: {error}") from error


def _culprit(base: DictConfig, layer: DictConfig) -> str:
    """The path of the first value of `layer` that cannot be merged; OmegaConf's error does not always have it."""
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
    """One line: the key, its fault, and the known keys if there is no such key."""
    key = getattr(error, "full_key", None) or culprit
    cause = str(getattr(error, "msg", None) or error).split("\n")[0]
    parent = getattr(error, "parent_node", None)
    if isinstance(error, ConfigKeyError) and isinstance(parent, DictConfig):
        cause += f"; known there: {', '.join(map(str, parent))}"
    return f"{key}: {cause}" if key else cause
