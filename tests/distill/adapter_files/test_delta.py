"""What a LoRA adds to a weight is what PEFT's own merge adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import anytext2  # noqa: F401  declares the torchvision operators that peft's imports need
from distill.adapter_files.delta import merged_weight
from distill.adapter_files.lora_weights import KINDS, LoraWeights, peft_config
from distill.checkpoint.formats import portable_name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 3)])
def test_merged_as_peft_merges(kind: str, layer: nn.Module) -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    layer = layer.double()
    base = layer.get_parameter("weight").detach().clone()
    settings = LoraWeights(Path("x"), "peft", kind, {}, {"0": 3}, {"0": 7.0})
    wrapped = get_peft_model(nn.Sequential(layer), peft_config(settings), autocast_adapter_dtype=False)  # type: ignore[arg-type]
    tensors = {}
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter)
            tensors[portable_name(name, "default")] = parameter.detach().clone()
    weights = LoraWeights(Path("x"), "peft", kind, tensors, {"0": 3}, {"0": 7.0})
    merged = wrapped.merge_and_unload()[0].weight
    torch.testing.assert_close(merged_weight(weights, "0", base), merged.double(), rtol=1e-6, atol=1e-6)
