"""DeepSpeed's JSON: reads it, validates it, and chooses the file for this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anytext2.core.resources import find_shipped, resource
from distill.config.ds_keys import Sorted, sort_keys

if TYPE_CHECKING:
    from distill.runtime.world import World

CPU_CONFIG = "zero2_cpu.json"
_MOST_FAULTS = 8  # named in one line
_TEXT = r'("(?:\\.|[^"\\\n])*")'
_COMMENT = re.compile(_TEXT + r"|//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_LAST_COMMA = re.compile(_TEXT + r"|,(?=\s*[}\]])")


def find_ds_config(path: Path) -> Path:
    """`path`, or the shipped configuration that it names. Raises ValueError in one line."""
    return find_shipped(path, "ds_configs", "--deepspeed")


def read_ds_config(path: Path) -> dict[str, Any]:
    """What DeepSpeed gets of a JSON, where there is no such file of a shipped one.

    Raises ValueError in one line, which names every key that is unknown, unsupported, the recipe's, or of a wrong type.
    """
    return _read(path).passed


def _read(path: Path) -> Sorted:
    file = find_ds_config(path)
    try:
        config = json.loads(_plain_json(file.read_text(encoding="utf-8-sig")), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError(f"--deepspeed {path}: not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {path}: not valid JSON: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"--deepspeed {path}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"--deepspeed {path}: nested too deeply for a configuration") from error
    except OSError as error:
        raise ValueError(f"--deepspeed {path}: cannot be read: {error.strerror}") from error
    if not isinstance(config, dict):
        raise ValueError(f'--deepspeed {path}: an object is needed, as in {{"zero_optimization": {{"stage": 2}}}}')
    found = sort_keys(config)
    if found.faults:
        more = len(found.faults) - _MOST_FAULTS
        listed = "; ".join(found.faults[:_MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"--deepspeed {path}: {listed}; remove or correct them")
    return found


def _plain_json(text: str) -> str:
    """JSON of what DeepSpeed's own reader takes beyond it: without comments and commas after the last value."""
    for pattern in (_COMMENT, _LAST_COMMA):  # a text matches first, and stays; so do line numbers
        text = pattern.sub(lambda match: match[1] or "\n" * match[0].count("\n"), text)
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    for name in content:
        if sum(key == name for key, _ in pairs) > 1:
            raise ValueError(f"{json.dumps(name)} occurs twice in one object; keep one")
    return content


def precision_of(ds_config: dict[str, Any]) -> str:
    """`fp16`, `bf16` or `fp32`."""
    for name in ("fp16", "bf16"):
        if ds_config.get(name, {}).get("enabled"):
            return name
    return "fp32"


def choose_config(path: Path, world: World, fp16_on_cpu: bool) -> tuple[dict[str, Any], str]:
    """The DeepSpeed configuration that runs here, and a line about it.

    DeepSpeed refuses fp16 without a GPU. There the shipped zero2_cpu.json is used instead, unless `fp16_on_cpu` is set,
    for fp16 with loss scaling on the CPU.
    """
    found = _read(path)
    kind = precision_of(found.passed)
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    on_gpu = world.device.type == "cuda"
    if kind == "fp16" and not on_gpu and not fp16_on_cpu:
        config = read_ds_config(resource("ds_configs") / CPU_CONFIG)
        return config, (
            f"No GPU here: {path.name} (fp16) falls back to {CPU_CONFIG} ({precision_of(config)}), {ranks} on the CPU"
        )
    where = torch.cuda.get_device_name(world.device) if on_gpu else "the CPU"
    auto = f'; DeepSpeed\'s defaults for "auto": {", ".join(found.auto)}' if found.auto else ""
    return found.passed, f"DeepSpeed ZeRO-2: {kind}, {ranks} on {where}{auto}"
