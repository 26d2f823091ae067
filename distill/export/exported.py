"""What the writers of all formats share: their options, their result, and files that hold a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.adapter_files.lora_weights import A, B
from distill.adapter_files.names import count_families, diffusers_path
from distill.export.base_weights import BaseWeights
from distill.export.notes import metadata_of, note_of
from distill.export.student import Student
from distill.export.tensor_files import TensorSpec, write_tensor_file

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportOptions:
    """dtype: a key of `DTYPES`; empty for the format's usual one. base: the teacher's weights, where they are there."""

    dtype: str = ""
    base: BaseWeights | None = None

    def torch_dtype(self, usual: str) -> torch.dtype:
        return DTYPES[self.dtype or usual]


@dataclass(frozen=True)
class Export:
    """path: file or folder. note: its metadata. layers: adapted ones in it."""

    path: Path
    note: dict[str, Any]
    layers: int


Writer = Callable[[Student, Path, ExportOptions], Export]


def sd_layers(student: Student, format_: str) -> tuple[dict[str, str], dict[str, int]]:
    """diffusers' path of each adapted layer that a plain SD 1.5 UNet has, and by family how many it does not have.

    Raises ValueError where that is none, or for DoRA, which those programs read in other ways.
    """
    if student.weights.kind == "dora":
        raise ValueError(f"--format {format_}: no DoRA is written in this format; merged, safetensors and peft take it")
    config = student.model.cfg.unet
    found = {module: diffusers_path(module, config) for module in student.weights.modules}
    kept = {module: name for module, name in found.items() if name is not None}
    left_out = count_families(module for module, name in found.items() if name is None)
    if not kept:
        raise ValueError(
            f"--format {format_}: no layer of this LoRA is one of the plain UNet ({_counted(left_out)}); "
            "merged, safetensors and peft take it"
        )
    return kept, left_out


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in `dtype`. Raises ValueError where a value is beyond its range."""
    found = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in found.items():
        require_finite(name, tensor)
    return found


def require_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: beyond the range of {str(tensor.dtype).removeprefix('torch.')}; use --dtype fp32")


def write_lora(
    student: Student,
    out: Path,
    format_: str,
    tensors: Mapping[str, Tensor],
    left_out: dict[str, int],
    base: BaseWeights | None,
    more: Mapping[str, str] | None = None,
) -> Export:
    """Writes a safetensors file with a LoRA. more: metadata of the format."""
    note = note_of(student, format_, base, left_out)
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    write_tensor_file(out, specs, tensors.__getitem__, metadata_of(student, note) | dict(more or {}))
    return Export(out, note, len(student.weights.modules) - sum(left_out.values()))


def renamed(student: Student, names: Mapping[str, str], down: str, up: str) -> dict[str, Tensor]:
    """A and B of the layers under new names: NAME.down and NAME.up."""
    tensors = student.weights.tensors
    pairs = ((A, down), (B, up))
    return {f"{name}.{part}": tensors[f"{path}.{ours}"] for path, name in names.items() for ours, part in pairs}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{family} {n}" for family, n in counts.items())
