"""The student's initial weights from an adapter folder (ours, PEFT's, a run of the original project) or one file.

    adapter_model.safetensors or adapter_model.bin   the LoRA by PEFT's names
    adapter_config.json                              optional; rank, alpha and kind must be the recipe's
    training_state.pt                                optional; only its step is read, for the log

Files of torch's pickle format come from other machines: they are read with `weights_only`, and one that asks for code
is refused.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext2.model.anytext2 import build_model, load_model_config
from distill.adapter_files.lora_weights import KINDS, lora_scale
from distill.adapter_files.reader import PICKLED_WEIGHTS, is_lora, read_lora
from distill.adapters.lora import AdapterConfig, require_fit
from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS, portable_name, read_tensors
from distill.checkpoint.store import read_json

TRAINING_STATE = "training_state.pt"
_STEPS = ("step", "global_step", "global_steps")


@dataclass(frozen=True)
class WarmStart:
    """tensors: float32 by portable name. step: number of its training updates, None if the folder does not have it.

    is_part: whether tensors of the student may be missing; they start afresh.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    step: int | None
    is_part: bool = False

    def described(self, wanted: int) -> str:
        """For a log; wanted: tensors that the student has."""
        count = f"{len(self.tensors)} of {wanted}" if self.is_part else f"{len(self.tensors)}"
        after = "" if self.step is None else f", trained for {self.step} updates before"
        return f"{self.path}: {count} tensors{after}"


def is_adapter_folder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER_WEIGHTS, PICKLED_WEIGHTS))


def read_start(lora: AdapterConfig, model_config: str) -> WarmStart:
    """Reads lora.weights, a folder or a file. model_config: of the recipe."""
    path = Path(lora.weights)
    if not path.is_file():
        return read_warm_start(path, lora)
    return read_warm_file(path, lora, build_model(load_model_config(model_config), "meta"))


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
    given = [(name, p) for name, p in params if name in start.tensors or not start.is_part]
    require_fit(start.path, start.tensors, {name: p.shape for name, p in given})
    for name, parameter in given:
        parameter.copy_(start.tensors[name])


def read_warm_file(path: Path, lora: AdapterConfig, model: nn.Module) -> WarmStart:
    """Reads a single file with a LoRA in native, kohya's or diffusers' names, for the student of `model`.

    What such a file cannot name (kohya's: WriteNet, attnx) starts afresh. Raises ValueError as `read_warm_start`, and
    where rank or scale are not the recipe's.
    """
    try:
        if not is_lora(path):
            raise ValueError(f"{path}: holds no LoRA; model.weights takes merged weights")
        weights = read_lora(path, model)
    except ValueError as error:
        raise ValueError(f"lora.weights: {error}") from error
    scale = lora_scale(lora.kind, lora.rank, lora.alpha)
    for module in weights.modules:
        if weights.ranks[module] != lora.rank:
            raise ValueError(
                f"lora.weights: {path}: rank {weights.ranks[module]} of {module}, the recipe has lora.rank={lora.rank};"
                " set lora.rank to it"
            )
        if not math.isclose(weights.scale(module), scale, rel_tol=1e-6):
            raise ValueError(
                f"lora.weights: {path}: scale {weights.scale(module):g} of {module}, the recipe has {scale:g} "
                f"(alpha {lora.alpha} of kind {lora.kind}); with lora.kind=lora that is "
                f"lora.alpha={weights.scale(module) * lora.rank:g}"
            )
    return WarmStart(path, weights.tensors, None, is_part=weights.format in ("kohya", "diffusers"))


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
