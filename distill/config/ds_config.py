"""DeepSpeed's JSON: reads it, validates it, and chooses the file for this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from anytext2.core.resources import find_shipped

if TYPE_CHECKING:
    from distill.runtime.world import World

CPU_CONFIG = "zero2_cpu.json"
SECTIONS = ("zero_optimization", "fp16", "bf16")


def find_ds_config(path: Path) -> Path:
    """`path`, or the shipped configuration that it names. Raises ValueError in one line."""
    return find_shipped(path, "ds_configs", "--deepspeed")


def read_ds_config(path: Path) -> dict[str, Any]:
    """Reads a DeepSpeed JSON, where there is no such file a shipped one. Raises ValueError in one line."""
    try:
        config = json.loads(find_ds_config(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {path}: not valid JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(name, {}), dict) for name in SECTIONS):
        raise ValueError(f"--deepspeed {path}: an object is needed, and objects in it as {', '.join(SECTIONS)}")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage != 2:
        raise ValueError(f"--deepspeed {path}: zero_optimization.stage={stage}; this trainer shards with stage 2")
    return cast(dict[str, Any], config)


def precision_of(ds_config: dict[str, Any]) -> str:
    """`fp16`, `bf16` or `fp32`."""
    for name in ("fp16", "bf16"):
        if ds_config.get(name, {}).get("enabled"):
            return name
    return "fp32"


def choose_config(path: Path, world: World, fp16_on_cpu: bool) -> tuple[dict[str, Any], str]:
    """The DeepSpeed configuration that runs here, and a line about it.

    DeepSpeed refuses fp16 without a GPU. There zero2_cpu.json beside the given file is used instead, unless
    `fp16_on_cpu` is set, for fp16 with loss scaling on the CPU.
    """
    config = read_ds_config(path)
    kind = precision_of(config)
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    if world.device.type == "cuda":
        return config, f"DeepSpeed ZeRO-2: {kind}, {ranks} on {torch.cuda.get_device_name(world.device)}"
    if kind == "fp16" and not fp16_on_cpu:
        config = read_ds_config(find_ds_config(path).parent / CPU_CONFIG)
        return config, (
            f"No GPU here: {path.name} (fp16) falls back to {CPU_CONFIG} ({precision_of(config)}), {ranks} on the CPU"
        )
    return config, f"DeepSpeed ZeRO-2: {kind}, {ranks} on the CPU"
