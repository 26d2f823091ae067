"""Adapters beside the student's, such as a style, each with a scale of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import nn

from distill.adapter_files.combine import ScaledLora, combine
from distill.adapter_files.lora_weights import LoraWeights
from distill.adapter_files.reader import read_lora
from distill.adapters.roles import STUDENT
from distill.checkpoint.formats import ADAPTER_CONFIG, PEFT_PREFIX
from distill.checkpoint.store import find_checkpoint


def named_scale(text: str, default: float = 1.0) -> tuple[Path, float]:
    """Path and scale of `PATH:0.7`, or of a path alone. Raises ValueError for a scale that is no finite number."""
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), default
    try:
        scale = float(number)
    except ValueError:
        raise ValueError(f"{text}: {number!r} is no scale; write it as in {name}:0.7") from None
    if not math.isfinite(scale):
        raise ValueError(f"{text}: the scale must be a finite number, as in {name}:0.7")
    return Path(name), scale


def adapter_place(path: Path) -> Path:
    """Where the adapter of a run or checkpoint is; a file, or a folder with an adapter, is the place itself."""
    if path.is_dir() and not (path / ADAPTER_CONFIG).is_file():
        return find_checkpoint(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return path


@dataclass(frozen=True)
class AddedAdapters:
    """The student's LoRA and those beside it. Layers and ranks may differ."""

    student: LoraWeights
    added: tuple[ScaledLora, ...]

    @classmethod
    def read(cls, student: Path, added: Sequence[tuple[Path, float]], model: nn.Module) -> AddedAdapters:
        """Reads all of them. Raises ValueError in one line for a file that does not fit the model."""
        parts = tuple(ScaledLora(read_lora(adapter_place(path), model), scale) for path, scale in added)
        return cls(ScaledLora(read_lora(student, model)).weights, parts)

    def weights(self) -> LoraWeights:
        """One LoRA whose delta is the exact sum."""
        return combine([ScaledLora(self.student), *self.added]).weights

    def identity(self) -> str:
        """A text that changes with the added files and their scales."""
        parts = []
        for part in self.added:
            digest = hashlib.sha256()
            for name, tensor in sorted(part.weights.tensors.items()):
                digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
            parts.append(f"+{digest.hexdigest()[:16]}:{part.scale:g}")
        return " ".join(parts)

    def with_scales(self, scales: Sequence[float]) -> AddedAdapters:
        """The same adapters with other scales. Raises ValueError unless there is one for each."""
        if len(scales) != len(self.added):
            raise ValueError(f"{len(scales)} scales for {len(self.added)} added adapters: give one for each")
        parts = (ScaledLora(part.weights, scale) for part, scale in zip(self.added, scales, strict=True))
        return replace(self, added=tuple(parts))

    def set_on(self, wrapped: PeftModel) -> None:
        """Puts these weights into a model that has those of the same adapters at other scales."""
        named = {PEFT_PREFIX + name: tensor for name, tensor in self.weights().tensors.items()}
        set_peft_model_state_dict(wrapped, named, adapter_name=STUDENT)

    def report(self) -> list[str]:
        """A line for each added adapter: how many layers, and what of its file was left out."""
        return [f"added {_described(part)}" for part in self.added]


def _described(part: ScaledLora) -> str:
    weights = part.weights
    left = ", ".join(f"{count} layers of the {family} left out" for family, count in weights.left_out.items())
    rank = "rank " + "-".join(map(str, sorted({min(weights.ranks.values()), max(weights.ranks.values())})))
    said = f"{weights.path} ({weights.format}, {rank}, {len(weights.modules)} layers) at {part.scale:g}"
    return f"{said}; {left}" if left else said
