"""Layers with weights in 8 bits: one scale for each output channel, which is dequantised when the layer computes.

torchao's own 8-bit weights are for linear layers only (0.18), and two thirds of the UNet are convolutions.

Shape legend: M rows, D inputs, E output channels, k/l sides of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytext2.model.anytext2 import AnyText2
from anytext2.model.text_encoder import CONTEXT_LENGTH

NETWORKS = ("model.diffusion_model", "control_model")
"""The networks whose layers are quantised."""
LEVELS = 127
_LEFT_OUT = ("time_embed.0", "time_embed.2")
"""Small, and the networks' dtype is read off them."""
_OF_CONTEXT = (".attn2.to_k", ".attn2.to_v", ".attn2x.to_k", ".attn2x.to_v")


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values in the weight's shape and float32 scales [E]: weight[e] is about values[e] * scales[e]."""
    rows = weight.detach().float().flatten(1)
    scales_E = rows.abs().amax(dim=1) / LEVELS
    values = (rows / scales_E.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return values.to(torch.int8).reshape(weight.shape), scales_E


class Int8Layer(nn.Module):
    """A linear layer or a convolution with 8-bit weights.

    first: output of the layer [E] for the first token of a context in 16 bits, which replaces what it computes in each
    chunk of 77 rows. With CLIP's weights that token's values are far larger than the others', so that rounding errors
    of the weights are, too (MixDQ, Zhao et al. 2024). It is the same in every caption: the text encoder is causal.
    """

    weight: Tensor
    weight_scale: Tensor
    first: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, first: Tensor | None = None) -> None:
        super().__init__()
        values, scales = quantize_rows(layer.weight)
        dtype = layer.weight.dtype
        self.register_buffer("weight", values)
        self.register_buffer("weight_scale", scales.to(dtype))
        self.register_buffer("first", None if first is None else first.to(dtype))
        self._parameters["bias"] = layer._parameters["bias"]
        self.convolution: tuple[Any, ...] | None = None
        if isinstance(layer, nn.Conv2d):
            assert layer.padding_mode == "zeros"
            self.convolution = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def dequantized(self) -> Tensor:
        """The weight in the dtype of the scales."""
        return self.weight.to(self.weight_scale.dtype) * self.weight_scale.view(-1, *[1] * (self.weight.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.convolution is not None:
            return torch.conv2d(x, self.dequantized(), self.bias, *self.convolution)
        y_ME = F.linear(x, self.dequantized(), self.bias)
        if self.first is not None:
            y_ME[::CONTEXT_LENGTH] = self.first
        return y_ME


def quantizable_layers(model: AnyText2) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of UNet and WriteNet by official path, in the model's order."""
    return {
        f"{network}.{path}": layer
        for network in NETWORKS
        for path, layer in model.get_submodule(network).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and path not in _LEFT_OUT
    }


def own_structure(module: nn.Module) -> nn.Module:
    """The same network as modules of its own, over the same parameters: its layers can be replaced."""
    twin = copy(module)
    twin._modules = {name: None if child is None else own_structure(child) for name, child in module._modules.items()}
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    return twin


def replace_layer(model: AnyText2, path: str, layer: nn.Module) -> None:
    """Puts another layer in the place of that at `path`."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = layer


@torch.no_grad()
def first_tokens(model: AnyText2) -> Tensor:
    """The context of the first token [D], which is the same in every caption."""
    return model.negative_contexts().image[0, 0]


@torch.no_grad()
def quantized_layer(path: str, layer: nn.Linear | nn.Conv2d, first_D: Tensor) -> Int8Layer:
    """The layer in 8 bits. first_D: of `first_tokens`, used where the layer reads a context."""
    reads_context = isinstance(layer, nn.Linear) and path.endswith(_OF_CONTEXT)
    return Int8Layer(layer, layer(first_D[None].to(layer.weight.dtype))[0] if reads_context else None)


def quantize(model: AnyText2, kept: Iterable[str] = ()) -> dict[str, Int8Layer]:
    """Replaces the layers of UNet and WriteNet, in place, but for those in `kept`. Returns the new ones by path."""
    first, kept = first_tokens(model), set(kept)
    new = {
        path: quantized_layer(path, layer, first)
        for path, layer in quantizable_layers(model).items()
        if path not in kept
    }
    for path, layer in new.items():
        replace_layer(model, path, layer)
    return new


def network_tensors(model: AnyText2) -> dict[str, Tensor]:
    """The tensors of UNet and WriteNet by official name."""
    return {
        f"{network}.{name}": tensor
        for network in NETWORKS
        for name, tensor in model.get_submodule(network).state_dict().items()
    }


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
