"""The recipe's `objective` section: a mapping in YAML, the Config of the named objective after `resolve_objective`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.config.merging import merge, to_object
from distill.losses.terms import TERMS, TermConfig
from distill.objectives import OBJECTIVES
from distill.objectives.base import ObjectiveConfig
from distill.objectives.teacher import StudentConfig


def resolve_objective(section: Mapping[str, Any]) -> ObjectiveConfig:
    """The validated Config of the objective that the section names.

    Raises ValueError for an unknown objective or an unknown or impossible option of it.
    """
    options = dict(section)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}: one of {', '.join(OBJECTIVES)}")
    terms = options.pop("terms", None)
    config = to_object(merge(_schema(name), DictConfig(options), "objective"), "objective")
    assert isinstance(config, ObjectiveConfig)
    if terms:
        if not isinstance(config, StudentConfig):
            raise ValueError(f"objective.terms: objective {name} trains no student, so no terms can be added to it")
        config.terms = _resolve_terms(terms)
    return config


def _resolve_terms(section: Any) -> dict[str, TermConfig]:
    """The configs of objective.terms, by name. Raises ValueError as `resolve_objective` does."""
    if not isinstance(section, dict):
        raise ValueError(
            f"objective.terms={section!r}: a mapping is needed, as in {{focal_frequency: {{weight: 0.05}}}}"
        )
    found: dict[str, TermConfig] = {}
    for name, options in section.items():
        where = f"objective.terms.{name}"
        if name not in TERMS:
            raise ValueError(f"{where}: there is no such term; there are {', '.join(TERMS)}")
        if not isinstance(options, dict):
            raise ValueError(f"{where}={options!r}: a mapping is needed, as in {{weight: 0.05}}")
        # The schema's own values are not checked: a weight must be given.
        schema = OmegaConf.create(OmegaConf.structured(TERMS[name].Config))
        found[name] = to_object(merge(schema, DictConfig(options), where), where)
    return found


def leave_objective(merged: DictConfig, layer: DictConfig) -> None:
    """Where `layer` names another objective than `merged`, deletes the options that it does not have from `merged`.

    Options of both, such as the range of guidance, stay, unless their value is one that the other cannot take.
    """
    section = layer.get("objective")
    name = section.get("name") if isinstance(section, DictConfig) else None
    if name not in OBJECTIVES or name == merged.objective.get("name"):
        return
    for option in [key for key in merged.objective if not _takes(name, key, merged.objective[key])]:
        del merged.objective[option]


def _takes(name: str, option: Any, value: Any) -> bool:
    if option not in {field.name for field in fields(OBJECTIVES[name].Config)}:
        return False
    if option == "terms":  # has a schema of its own
        return True
    try:
        OmegaConf.merge(_schema(name), {option: value})
    except (OmegaConfBaseException, TypeError):
        return False
    return True


def _schema(name: str) -> DictConfig:
    schema = OmegaConf.structured(OBJECTIVES[name].Config)
    assert isinstance(schema, DictConfig)
    return schema
