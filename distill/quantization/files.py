"""The file of a quantised student: UNet and WriteNet, 8-bit layers as PATH.weight (int8) and PATH.weight_scale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anytext2.core.files import not_weights, whole_file, write_safetensors
from anytext2.model.anytext2 import AnyText2
from distill.quantization.int8 import Int8Layer, network_tensors, quantizable_layers, replace_layer

NOTE = "anytext2_distill_int8"
_SCALE, _FIRST = ".weight_scale", ".first"


def write_quantized(path: Path, model: AnyText2, note: Mapping[str, Any]) -> None:
    """Writes UNet and WriteNet of a quantised model, other floats in fp16. note: JSON values about the student.

    Raises ValueError for values that fp16 cannot hold.
    """
    tensors = {n: t.half() if t.is_floating_point() else t for n, t in network_tensors(model).items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that fp16 cannot hold")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        write_safetensors(file, tensors, {"format": "pt", NOTE: json.dumps(note)})


def read_note(path: Path) -> dict[str, Any]:
    """What the file says of its student. Raises ValueError where it is not a file of `write_quantized`."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; launch/quantize.py makes one")
    if what := not_weights(path):
        raise ValueError(f"{path}: not a readable weights file: {what}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a whole safetensors file ({reason})") from error
    try:
        note = json.loads(metadata[NOTE])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: no quantised student; launch/quantize.py makes one") from error
    assert isinstance(note, dict)
    return note


@torch.no_grad()
def load_quantized(model: AnyText2, path: Path) -> None:
    """Puts a quantised student's layers into the model, in place. The rest of both networks comes from the file, too.

    model: with a structure of its own (`own_structure`): its tensors are replaced, not written to.

    Raises ValueError where the file is not for this model; the model is then unchanged.
    """
    read_note(path)
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    layers = quantizable_layers(model)
    eight = {name.removesuffix(_SCALE) for name in found if name.endswith(_SCALE)}
    wanted = {name: tuple(tensor.shape) for name, tensor in network_tensors(model).items()}
    wanted |= {f"{layer}{_SCALE}": (wanted[f"{layer}.weight"][0],) for layer in eight if layer in layers}
    firsts = {name for name in found if name.endswith(_FIRST)}
    wanted |= {name: wanted.get(f"{name.removesuffix(_FIRST)}{_SCALE}", ()) for name in firsts}
    wrong = [name for name in {*wanted, *found} if name not in found or wanted.get(name) != tuple(found[name].shape)]
    if wrong:
        raise ValueError(f"{path}: a student of another model: {len(wrong)} tensors do not fit, first {min(wrong)}")
    for layer in eight:
        plain = layers[layer]
        replace_layer(model, layer, _loaded(plain, found, layer))
    dtype = model.dtype
    for name, tensor in found.items():
        parent, _, own = name.rpartition(".")
        module, value = model.get_submodule(parent), tensor if tensor.dtype == torch.int8 else tensor.to(dtype)
        if own in module._parameters:
            module._parameters[own] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[own] = value


def _loaded(plain: nn.Linear | nn.Conv2d, found: Mapping[str, Tensor], path: str) -> Int8Layer:
    """An 8-bit layer of the plain one's kind, whose values are copied later."""
    first = found.get(f"{path}{_FIRST}")
    return Int8Layer(plain, None if first is None else torch.zeros_like(first))
