"""Reads a YAML file or a command line of the earlier scripts: which script it starts, and the values that it gives."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distill.migration.table import BY_NAME, VERSIONS, OldKey

SECTIONS = ("model", "data", "train", "system")
_NEWER_SECTIONS = {"name", "run_root", "seed", "objective", "lora", "checkpoint", "log", "eval", "tracking", "watchdog"}
_SHARED = {("model", "config"), ("train", "learning_rate")}
"""Keys that recipes have in the same section."""
_SCRIPT = re.compile(r"train_lcm_anytext(_v2(?:_[234])?)?(?:\.py)?$")
_FROM_YAML = "launch_from_yaml.py"
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class OldSettings:
    """script: one of VERSIONS. values: those that were given, by old name. unknown: keys that no script had, each with
    the nearest one that exists, or "". gpus: processes that were started."""

    script: str
    values: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)
    gpus: int = 1

    def __getitem__(self, name: str) -> Any:
        """The value that the script used: the one that was given, or its default."""
        key = BY_NAME[name]
        return self.values.get(name, key.default_of(self.script))


def is_old_file(content: Any) -> bool:
    """Whether a YAML file's content is of the earlier scripts: it has keys of theirs, and no section that only recipes
    have."""
    if not isinstance(content, Mapping) or _NEWER_SECTIONS & content.keys():
        return False
    sections = {name: content[name] for name in SECTIONS if isinstance(content.get(name), Mapping)}
    return any(key in BY_NAME and (name, key) not in _SHARED for name, keys in sections.items() for key in keys)


def read_old(words: Sequence[str]) -> OldSettings:
    """The settings of a YAML file, or of a command line in one word or several. Raises ValueError in one line."""
    given = shlex.split(words[0]) if len(words) == 1 and not Path(words[0]).is_file() else list(words)
    if len(given) == 1 and not given[0].endswith(".py"):
        return _read_yaml(Path(given[0]))
    return _read_command(given)


def _read_yaml(path: Path, gpus: int = 0) -> OldSettings:
    """gpus: of the command that used the file; 0: what the file says."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not is_old_file(content):
        if isinstance(content, Mapping) and _NEWER_SECTIONS & content.keys():
            raise ValueError(f"{path}: has sections of a recipe already; start it with launch/train.py --config {path}")
        raise ValueError(
            f"{path}: neither a recipe nor a YAML file of the earlier scripts (model, data, train, system)"
        )
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= value if name in SECTIONS and isinstance(value, Mapping) else {name: value}
    unset = {name for name, value in flat.items() if value is None or value == ""}
    values, unknown = _sort({name: value for name, value in flat.items() if name not in unset}, str(path))
    script = _script_of(values, str(path))
    return OldSettings(script, values, unknown, gpus or values.get("num_gpus", 1))


def _read_command(words: Sequence[str]) -> OldSettings:
    for place, word in enumerate(words):
        if Path(word).name == _FROM_YAML:
            file = _options(words[place + 1 :]).get("config")
            if not file:
                raise ValueError(f"{_FROM_YAML}: its --config is missing")
            return _read_yaml(Path(file[0]), _processes(words[:place]))
        if found := _SCRIPT.search(word):
            values, unknown = _sort(_options(words[place + 1 :]), "command")
            return OldSettings(_version(found), values, unknown, _processes(words[:place]) or 1)
    raise ValueError(
        f"{shlex.join(words)[:80]}: neither a YAML file nor a command of the earlier scripts "
        f"(train_lcm_anytext.py, train_lcm_anytext_v2.py to _v2_4.py, {_FROM_YAML})"
    )


def _processes(launcher: Sequence[str]) -> int:
    """What the launcher before the script was told; 0: nothing."""
    options = _options(launcher)
    for name in ("num_processes", "nproc_per_node", "num_gpus"):
        if (value := options.get(name)) and value[0].isdigit():
            return int(value[0])
    return 0


def _version(found: re.Match[str]) -> str:
    return f"v{found[1][2:]}" if found[1] else "v1"


def _options(words: Sequence[str]) -> dict[str, list[str]]:
    """The options of a command line by name without dashes, each with the words that follow it."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            current = found[name.replace("-", "_")] = [value] if equals else []
        else:
            current.append(word)
    return found


def _sort(given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    values, unknown = {}, {}
    for name, value in given.items():
        if name in BY_NAME:
            values[name] = _typed(BY_NAME[name], value, where)
        else:
            unknown[str(name)] = next(iter(difflib.get_close_matches(str(name), BY_NAME, 1)), "")
    return values, unknown


def _typed(key: OldKey, value: Any, where: str) -> Any:
    """The value as the script's argument parser had it. Raises ValueError naming the key."""
    several = [*value] if isinstance(value, list) else [value]
    try:
        if key.kind == "flag":
            return True if several == [] else _WORDS[str(several[0]).lower()]
        if key.kind in ("texts", "floats"):
            return [float(item) if key.kind == "floats" else str(item) for item in several]
        (one,) = several
        return {"int": int, "float": float, "text": str}[key.kind](one)
    except (ValueError, TypeError, KeyError) as error:
        shown = " ".join(map(str, several))
        raise ValueError(f"{where}: {key.name}={shown!r}: {_WANTED[key.kind]} is needed") from error


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "text": "one value",
    "flag": "true or false",
    "floats": "numbers",
    "texts": "a list",
}


def _script_of(values: Mapping[str, Any], where: str) -> str:
    """The script that the YAML file starts: the named one, or the first that has all of its keys."""
    named = values.get("train_script", "")
    if named:
        found = _SCRIPT.search(named)
        if not found:
            raise ValueError(f"{where}: train_script={named}: not one of the earlier scripts")
        return _version(found)
    least = "v2_2" if values.get("use_optimized") else "v2"
    for script in VERSIONS[VERSIONS.index(least) :]:
        if all(script in BY_NAME[name].scripts for name in values if BY_NAME[name].scripts != ("yaml",)):
            return script
    return least
