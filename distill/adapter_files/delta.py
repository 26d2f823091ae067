"""What a LoRA adds to a layer's weight, computed in float64 and rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.adapter_files.lora_weights import LENGTHS, A, B, LoraWeights


def lora_delta(weights: LoraWeights, module: str, shape: torch.Size) -> Tensor:
    """scale * B A of a layer as float64 in the shape of its weight: [out, in] or [out, in, kh, kw].

    Of DoRA it is what stands in the sum before the lengths, see `merged_weight`.
    """
    a, b = (weights.tensors[f"{module}.{part}"].double().flatten(1) for part in (A, B))
    return (weights.scale(module) * (b @ a)).reshape(shape)


def merged_weight(weights: LoraWeights, module: str, base: Tensor, strength: float = 1.0) -> Tensor:
    """The weight of a layer with the LoRA in it, in float64: W + strength * scale * B A.

    Of DoRA (Liu et al. 2024, equation 5) each row (output channel) of that sum then gets its trained length.
    """
    merged = base.double() + strength * lora_delta(weights, module, base.shape)
    lengths = weights.tensors.get(f"{module}.{LENGTHS}")
    if lengths is None:
        return merged
    rows = merged.flatten(1)
    return (rows * (lengths.double().reshape(-1, 1) / rows.norm(dim=1, keepdim=True))).reshape(base.shape)
