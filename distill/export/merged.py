"""The official checkpoint with the LoRA in its weights, whole or only what the LoRA changes.

Each tensor is read, changed and written before the next one, so that no model is in memory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.adapter_files.delta import merged_weight
from distill.export.exported import Export, ExportOptions, require_finite
from distill.export.notes import metadata_of, note_of
from distill.export.student import Student
from distill.export.tensor_files import TensorSpec, write_tensor_file


def write_merged(student: Student, out: Path, options: ExportOptions) -> Export:
    """Writes all tensors by official name: a .safetensors file, or a .ckpt as the reference program loads it."""
    return _write(student, out, options, "merged", parts_only=False)


def write_merged_parts(student: Student, out: Path, options: ExportOptions) -> Export:
    """Writes the weights of the adapted layers only; model.parts lays them over the rest."""
    return _write(student, out, options, "merged-parts", parts_only=True)


def _write(student: Student, out: Path, options: ExportOptions, format_: str, parts_only: bool) -> Export:
    base, dtype = options.base, options.torch_dtype("fp16")
    assert base is not None
    weights = student.weights
    changed = {f"{module}.weight": module for module in weights.modules}
    specs = [
        TensorSpec(name, tuple(tensor.shape), _stored(name, tensor, dtype))
        for name, tensor in base.tensors.items()
        if name in changed or not parts_only
    ]
    types = {spec.name: spec.dtype for spec in specs}

    def produce(name: str) -> Tensor:
        tensor = base.read(name)
        if name in changed:
            tensor = merged_weight(weights, changed[name], tensor)
        stored = tensor.to(types[name])
        require_finite(name, stored)
        return stored

    note = note_of(student, format_, base, {})
    write_tensor_file(out, specs, produce, metadata_of(student, note))
    return Export(out, note, len(changed))


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """As `save_weights`: the noise schedule, batch norm statistics and integers keep their dtypes."""
    keep = "." not in name or ".running_" in name or not tensor.is_floating_point()
    return tensor.dtype if keep else dtype
