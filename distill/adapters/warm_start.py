"""The student's initial weights from an adapter folder: ours, PEFT's, or a run of the original project.

    adapter_model.safetensors or adapter_model.bin   the LoRA by PEFT's names
    adapter_config.json                              optional; rank, alpha and kind must be the recipe's
    training_state.pt                                optional; only its step is read, for the log

Files of torch's pickle format come from other machines: they are read with `weights_only`, and one that asks for code
is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.adapter_files.lora_weights import KINDS
from distill.adapters.lora import AdapterConfig, require_fit
from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS, portable_name, read_tensors
from distill.checkpoint.store import read_json

PICKLED_WEIGHTS = "adapter_model.bin"
TRAINING_STATE = "training_state.pt"
_STEPS = ("step", "global_step", "global_steps")


@dataclass(frozen=True)
class WarmStart:
    """tensors: float32 by portable name. step: number of its training updates, None if the folder does not have it."""

    path: Path
    tensors: dict[str, torch.Tensor]
    step: int | None


def is_adapter_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER_WEIGHTS, PICKLED_WEIGHTS))


def read_warm_start(folder: Path, lora: AdapterConfig) -> WarmStart:
    """Reads an adapter folder. Raises ValueError for one that is damaged, unsafe, or made for another LoRA."""
    if not is_adapter_folder(folder):
        raise ValueError(f"lora.weights={folder}: no {ADAPTER_WEIGHTS} or {PICKLED_WEIGHTS} there")
    if (folder / ADAPTER_CONFIG).is_file():
        require_same_adapter(folder / ADAPTER_CONFIG, lora)
    path = folder / ADAPTER_WEIGHTS
    if path.is_file():
        found: Mapping[Any, Any] = read_tensors(path)
    else:
        path = folder / PICKLED_WEIGHTS
        found = _read_pickle(path)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ValueError(f"{path}: {name!r} is no tensor of weights; an adapter holds nothing else")
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} is not finite")
        tensors[portable_name(name, "default")] = value.float()
    return WarmStart(path, tensors, _step(folder / TRAINING_STATE))


@torch.no_grad()
def load_warm_start(start: WarmStart, params: list[tuple[str, nn.Parameter]]) -> None:
    """Copies the tensors into the student's parameters, given by portable name.

    Raises ValueError naming what is missing, unexpected or of another shape; nothing is then changed.
    """
    require_fit(start.path, start.tensors, {name: p.shape for name, p in params})
    for name, parameter in params:
        parameter.copy_(start.tensors[name])


def require_same_adapter(path: Path, lora: AdapterConfig) -> None:
    """Raises ValueError, naming the difference, if rank, alpha or kind are not the recipe's.

    path: an adapter_config.json.
    """
    config = read_json(path)
    for key, name, wanted in (("r", "rank", lora.rank), ("lora_alpha", "alpha", lora.alpha)):
        if config.get(key, wanted) != wanted:
            raise ValueError(f"{path}: {key}={config[key]}, the recipe has lora.{name}={wanted}; set lora.{name} to it")
    switches = {key: True for key in ("use_dora", "use_rslora", "fan_in_fan_out") if config.get(key)}
    if switches != KINDS[lora.kind]:
        known = next((kind for kind, found in KINDS.items() if found == switches), None)
        said = " and ".join(f"{key}=True" for key in switches) or "neither use_dora nor use_rslora"
        help_ = f"set lora.kind={known}" if known else "that is no lora.kind"
        raise ValueError(f"{path}: {said}, the recipe has lora.kind={lora.kind}; {help_}")


def _step(path: Path) -> int | None:
    if not path.is_file():
        return None
    state = _read_pickle(path)
    return next((state[key] for key in _STEPS if isinstance(state.get(key), int)), None)  # type: ignore[return-value]


def _read_pickle(path: Path) -> Mapping[object, object]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {name[1]}" if name else "it is damaged, or asks for code"
        raise ValueError(
            f"{path}: refused: {what}, and only tensors, numbers, texts and containers of them are read; "
            "convert it where it was made, or take the file away if it is not needed"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a whole file of torch.save ({reason})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: a dictionary is expected, not a {type(content).__name__}")
    return content
