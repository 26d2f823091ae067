"""The student's LoRA on the teacher's frozen weights: created, loaded, and a second adapter beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from anytext2.core.rng import seed_for
from anytext2.model.anytext2 import AnyText2
from distill.adapter_files.lora_weights import KINDS, LoraWeights, peft_config
from distill.adapter_files.reader import read_lora
from distill.adapters.frozen_conv import forget_inputs
from distill.adapters.fused_linear import fuse_linear_layers
from distill.adapters.roles import STUDENT
from distill.adapters.targets import lora_targets
from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX, portable_name, read_adapter


@dataclass
class AdapterConfig:
    """The student's adapter.

    kind: `lora`, W + alpha / rank B A (Hu et al. 2021); `rslora`, alpha / sqrt(rank) instead (Kalajdzievski 2023);
    `dora`, with a trained magnitude for each row of that sum (Liu et al. 2024). targets: a preset, a file or a pattern,
    see distill/adapters/targets.py. weights: empty for random ones from the seed, or a PEFT folder or a
    LoRA file to start from.
    """

    kind: str = "lora"
    rank: int = 64
    alpha: int = 64
    dropout: float = 0.0
    targets: str = "paper"
    weights: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"lora.kind={self.kind!r}: one of {', '.join(KINDS)}")
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1 (64 is usual)")
        if self.alpha < 1:
            raise ValueError(f"lora.alpha={self.alpha} must be at least 1 (the rank is usual)")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout={self.dropout} must lie in [0, 1)")


def add_student(model: AnyText2, config: AdapterConfig, seed: int) -> PeftModel:
    """Freezes `model` and puts a fresh LoRA on it (A random in `seed`, B zero: the student starts as the teacher).

    Raises ValueError if `config.targets` cannot be adapted (see lora_targets), or not by DoRA.
    """
    model.requires_grad_(False)
    targets = lora_targets(model, config.targets)
    if config.kind == "dora":
        _require_lengths(model, targets)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        **KINDS[config.kind],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, 0, 0, "lora"))
        student = get_peft_model(model, lora, adapter_name=STUDENT)  # type: ignore[arg-type]  # any nn.Module works
    fuse_linear_layers(student)
    forget_inputs(student)
    return student


def add_adapter(student: PeftModel, adapter: str, trained: bool, seed: int) -> None:
    """Adds a second adapter with the student's configuration, random in `seed`; B is zero, so it equals the teacher.

    The moving average's weights are then written by `Engine.copy_ema_to`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, 0, 0, f"lora/{adapter}"))
        student.add_adapter(adapter, lora_config(student))
    student.set_adapter(STUDENT)
    for _, p in adapter_parameters(student, adapter):
        p.requires_grad_(trained)


def adapter_parameters(student: PeftModel, adapter: str) -> list[tuple[str, nn.Parameter]]:
    """(name in checkpoints, parameter) of one adapter, in the model's order; a second one's names begin `ADAPTER:`."""
    prefix = "" if adapter == STUDENT else f"{adapter}:"
    return [(prefix + portable_name(n, adapter), p) for n, p in student.named_parameters() if f".{adapter}." in n]


def adapter_of(name: str) -> str:
    """The adapter that a name from `adapter_parameters` belongs to."""
    return name.split(":", 1)[0] if ":" in name else STUDENT


@torch.no_grad()
def _require_lengths(model: nn.Module, targets: list[str]) -> None:
    """Raises ValueError for weights with a zero row: DoRA divides by each row's norm, perhaps in half precision."""
    silent = [
        name
        for name in targets
        if not (w := model.get_submodule(name).get_parameter("weight")).is_meta
        and bool((w.half().float().flatten(1).norm(dim=1).half() == 0).any())
    ]
    if silent:
        raise ValueError(
            f"lora.kind=dora cannot scale an output channel of zeros, which {len(silent)} of {len(targets)} layers have"
            f" (first {silent[0]}); leave them out of lora.targets, or use lora.kind=lora"
        )


def lora_config(student: PeftModel) -> LoraConfig:
    """The configuration of the student's adapter."""
    config = student.peft_config[STUDENT]
    assert isinstance(config, LoraConfig)
    return config


def load_student(model: AnyText2, folder: Path) -> PeftModel:
    """Puts the adapter saved in `folder` (PEFT format) on `model`, frozen, for sampling. A file is read as well.

    Raises ValueError if the folder holds no adapter, a damaged one, or one that does not fit the model.
    """
    if folder.is_file():
        return attach_student(model, read_lora(folder, model))
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder}: no adapter here ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} are needed)")
    tensors, written = read_adapter(folder)
    require_scale(folder / ADAPTER_CONFIG, written)
    model.requires_grad_(False)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        config.base_model_name_or_path = None  # a note for readers; PEFT would warn that the model has another name
        student = get_peft_model(model, config, adapter_name=STUDENT)  # type: ignore[arg-type]
        fuse_linear_layers(student)
        student.requires_grad_(False)  # PEFT leaves DoRA's magnitudes of convolutions trainable
    except (ValueError, TypeError, KeyError) as error:  # PEFT's message is long: it names every target module
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / ADAPTER_CONFIG}: does not fit this model: {reason}") from error
    shapes = {portable_name(n, STUDENT): p.shape for n, p in student.named_parameters() if ".lora_" in n}
    require_fit(folder / ADAPTER_WEIGHTS, tensors, shapes)
    set_peft_model_state_dict(student, {PEFT_PREFIX + n: t for n, t in tensors.items()}, adapter_name=STUDENT)
    return student


def attach_student(model: AnyText2, weights: LoraWeights) -> PeftModel:
    """Puts a LoRA that was read from any format on `model`, frozen, for sampling."""
    model.requires_grad_(False)
    student = get_peft_model(model, peft_config(weights), adapter_name=STUDENT)  # type: ignore[arg-type]
    fuse_linear_layers(student)
    student.requires_grad_(False)
    shapes = {portable_name(n, STUDENT): p.shape for n, p in student.named_parameters() if ".lora_" in n}
    require_fit(weights.path, weights.tensors, shapes)
    set_peft_model_state_dict(student, {PEFT_PREFIX + n: t for n, t in weights.tensors.items()}, adapter_name=STUDENT)
    return student


def require_scale(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError unless rank and alpha of an adapter_config.json are there: PEFT would take 8 for either."""
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{path}: {key}={value!r}: a number above 0 is needed, the one that it was trained with")


def require_fit(path: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raises ValueError, with counts of the differences, unless `tensors` has exactly these names and shapes."""
    faults = {
        "missing": [n for n in shapes if n not in tensors],
        "unexpected": [n for n in tensors if n not in shapes],
        "of another shape": [n for n, t in tensors.items() if n in shapes and t.shape != shapes[n]],
    }
    if any(faults.values()):
        counts = ", ".join(f"{len(names)} {kind} (first {names[0]})" for kind, names in faults.items() if names)
        raise ValueError(f"{path}: does not fit this model: of {len(shapes)} tensors {counts}")
