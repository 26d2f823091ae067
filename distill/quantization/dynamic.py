"""Activations in 8 bits, too: linear layers multiply integers, by torchao (an optional package)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anytext2.model.anytext2 import AnyText2
from anytext2.model.text_encoder import CONTEXT_LENGTH
from distill.quantization.int8 import Int8Layer, replace_layer


class _FirstToken(nn.Module):
    """A layer whose output for the first token of each chunk of a context is replaced, see `Int8Layer`."""

    def __init__(self, layer: nn.Module, first: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("first", first)

    def forward(self, x: Tensor) -> Tensor:
        y_ME: Tensor = self.layer(x)
        y_ME[::CONTEXT_LENGTH] = self.get_buffer("first")
        return y_ME


def quantize_activations(model: AnyText2) -> int:
    """Turns the 8-bit linear layers of the model into torchao's, in place; returns how many.

    Each row of the input gets a scale of its own when it is computed. Convolutions stay as they are.
    Raises ValueError where torchao is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise ValueError("--quantize-activations: torchao is missing: pip install 'anytext2-distill[quant]'") from error
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, Int8Layer) and layer.convolution is None
    }
    for path, layer in layers.items():
        with torch.device("meta"):
            plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], bias=layer.bias is not None)
        plain.weight = nn.Parameter(layer.dequantized(), requires_grad=False)
        plain._parameters["bias"] = layer._parameters["bias"]
        quantize_(plain, Int8DynamicActivationInt8WeightConfig())
        replace_layer(model, path, plain if layer.first is None else _FirstToken(plain, layer.first))
    return len(layers)
