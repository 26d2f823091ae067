"""Recipe keys that do not exist, found in all layers at once, each with the nearest key that does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import SequenceMatcher
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.config.schema import Recipe
from distill.losses.terms import TERMS
from distill.objectives import OBJECTIVES

_LEAST_LIKENESS = 1.3  # of a key that is worth naming


def refuse_unknown_keys(layers: Sequence[tuple[str, DictConfig]]) -> None:
    """Raises ValueError, in one line, for all keys that a recipe does not have.

    layers: the recipe file and the overrides, in order, each with what it is called in the error.
    """
    contents = [(where, OmegaConf.to_container(layer)) for where, layer in layers]
    names = [Recipe().objective["name"], *(_objective_name(content) for _, content in contents)]
    chosen = [name for name in names if name is not None]
    found: list[tuple[str, str]] = []
    known: list[str] = []
    for place, (where, content) in enumerate(contents):
        # An option may belong to the objective named so far, or to the one that a later override names.
        so_far = [name for name in names[: place + 2] if name is not None][-1]
        known = _known_keys({so_far, chosen[-1]})
        found += [(where, key) for key in _unknown(content, known)]
    if not found:
        return
    if len(found) == 1:
        ((where, key),) = found
        section = key.rpartition(".")[0]
        there = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
        listed = f"; known there: {', '.join(there)}" if there else f"; {section} is a single value"
        raise ValueError(f"{where}: {key}: no such key{_nearest(key, known)}{listed}")
    raise ValueError(
        f"{len(found)} keys that recipes do not have: "
        + "; ".join(f"{key}{_nearest(key, known)} ({where})" for where, key in found)
    )


def _objective_name(content: Any) -> str | None:
    section = content.get("objective") if isinstance(content, dict) else None
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else None


def _unknown(content: Any, known: Sequence[str], section: str = "") -> Iterator[str]:
    """The full keys of `content` that are not known; of an unknown section, only its own key."""
    for name, value in content.items():
        key = f"{section}{name}"
        if key not in known and not _is_free(key, known):
            yield key
        elif isinstance(value, dict):
            yield from _unknown(value, known, f"{key}.")


def _is_free(key: str, known: Sequence[str]) -> bool:
    """Whether nothing is known about keys there: the options of an objective that does not exist (another error)."""
    return key.startswith("objective.") and "objective.*" in known


def _known_keys(objectives: set[str]) -> list[str]:
    """The full keys of all sections and values, with the options of these objectives."""
    keys = [*_fields_of(Recipe), "objective.name"]
    for name in objectives:
        if name not in OBJECTIVES:
            return [*keys, "objective.*"]
        keys += [f"objective.{field.name}" for field in fields(OBJECTIVES[name].Config) if field.init]
    if "objective.terms" in keys:
        for term, kind in TERMS.items():
            keys += [f"objective.terms.{term}", *(f"objective.terms.{term}.{f.name}" for f in fields(kind.Config))]
    return list(dict.fromkeys(keys))


def _fields_of(schema: type, section: str = "") -> Iterator[str]:
    for field in fields(schema):
        yield f"{section}{field.name}"
        made = field.default_factory
        if made is not MISSING and isinstance(made, type) and is_dataclass(made):
            yield from _fields_of(made, f"{section}{field.name}.")


def _nearest(key: str, known: Sequence[str]) -> str:
    best = max(known, key=lambda other: _likeness(key, other))
    return f", nearest is {best}" if _likeness(key, best) >= _LEAST_LIKENESS else ""


def _likeness(key: str, other: str) -> float:
    """Of the full keys, with something for a like last word, its initials (`lr`) and the same section."""
    (section, _, last), (other_section, _, other_last) = key.rpartition("."), other.rpartition(".")
    full, word = SequenceMatcher(None, key, other).ratio(), SequenceMatcher(None, last, other_last).ratio()
    if last == "".join(part[:1] for part in other_last.split("_")):
        word += 1.0
    return 2 * full + word + (0.5 if section and section == other_section else 0.0)
