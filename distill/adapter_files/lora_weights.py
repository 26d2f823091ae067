"""A LoRA by the official module paths, whatever file it was read from, and the configuration that PEFT needs for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from peft import LoraConfig

A, B, LENGTHS = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
"""The switches in PEFT's LoraConfig for each kind of LoRA."""


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA in native names.

    format: "peft", "safetensors" (native names), "kohya" or "diffusers". kind: a key of `KINDS`.
    tensors: float32. PATH.lora_A.weight [rank, in] or [rank, in, kh, kw]; PATH.lora_B.weight [out, rank] or
    [out, rank, 1, 1]; of DoRA, PATH.lora_magnitude_vector. ranks, alphas: by module path.
    left_out: family -> number of its layers that the file has and that neither UNet nor WriteNet can take.
    metadata: the file's own.
    """

    path: Path
    format: str
    kind: str
    tensors: dict[str, Tensor]
    ranks: dict[str, int]
    alphas: dict[str, float]
    left_out: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def modules(self) -> list[str]:
        return list(self.ranks)

    def scale(self, module: str) -> float:
        """What B A is multiplied by in this layer: alpha / rank, of rsLoRA alpha / sqrt(rank)."""
        return lora_scale(self.kind, self.ranks[module], self.alphas[module])


def lora_scale(kind: str, rank: int, alpha: float) -> float:
    """alpha / rank, of rsLoRA alpha / sqrt(rank)."""
    return alpha / (math.sqrt(rank) if kind == "rslora" else rank)


def peft_settings(weights: LoraWeights) -> dict[str, Any]:
    """The values of PEFT's LoraConfig. A layer with another rank or alpha than most is named in a pattern."""
    rank, rank_pattern = _usual(weights.ranks)
    alpha, alpha_pattern = _usual(weights.alphas)
    settings: dict[str, Any] = {"r": rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha}
    settings |= {"target_modules": list(weights.modules), "lora_dropout": 0.0, **KINDS[weights.kind]}
    settings |= {"rank_pattern": rank_pattern} if rank_pattern else {}
    return settings | ({"alpha_pattern": alpha_pattern} if alpha_pattern else {})


def peft_config(weights: LoraWeights) -> LoraConfig:
    """PEFT's configuration of the adapter."""
    from peft import LoraConfig

    return LoraConfig(**peft_settings(weights))


def _usual(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the others by name."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {name: value for name, value in values.items() if value != usual}
