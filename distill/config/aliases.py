"""Recipe keys that were renamed: the old spelling is read as the new one, with a notice."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.runtime.rendezvous import is_main_process

ALIASES = {
    "objective.lcm_step": "objective.teacher_interval",
    "model.planted": "model.fault_injection",
    "watchdog.tree": "watchdog.max_memory",
}
"""New spelling by old one; both have the same meaning and values."""

_noticed: set[str] = set()


def rename_keys(layers: Sequence[DictConfig], where: str) -> list[DictConfig]:
    """The layers with new spellings only. Prints one line on standard error for each old one, once a process.

    layers: of one source, such as a file or a command line. Raises ValueError where they give a key in both spellings.
    """
    contents = [OmegaConf.to_container(layer) for layer in layers]
    if not any(_holds(content, old) for content in contents for old in ALIASES):
        return list(layers)
    for old, new in ALIASES.items():
        renamed = [content for content in contents if _holds(content, old)]
        if not renamed:
            continue
        if any(_holds(content, new) for content in contents):
            raise ValueError(f"{where}: {old} is the old name of {new}; give one of them")
        for content in renamed:
            _section(content, new)[new.rpartition(".")[2]] = _section(content, old).pop(old.rpartition(".")[2])
        _notice(old, new)
    return [DictConfig(content) for content in contents]


def _section(content: Any, key: str) -> Any:
    """The mapping in `content` that holds the dotted key; None where there is none."""
    for part in key.split(".")[:-1]:
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _holds(content: Any, key: str) -> bool:
    section = _section(content, key)
    return isinstance(section, dict) and key.rpartition(".")[2] in section


def _notice(old: str, new: str) -> None:
    if old not in _noticed and is_main_process(os.environ):
        print(f"recipe: {old} is now {new}", file=sys.stderr, flush=True)
    _noticed.add(old)
