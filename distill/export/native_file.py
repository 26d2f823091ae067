"""One safetensors file with the whole LoRA by official module paths, and each layer's alpha."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.adapter_files.reader import KIND_KEY
from distill.export.exported import Export, ExportOptions, cast, write_lora
from distill.export.student import Student


def write_native(student: Student, out: Path, options: ExportOptions) -> Export:
    """Writes everything."""
    weights = student.weights
    tensors = cast(weights.tensors, options.torch_dtype("fp32"))
    tensors |= {f"{module}.alpha": torch.tensor(alpha) for module, alpha in weights.alphas.items()}
    return write_lora(student, out, "safetensors", tensors, {}, options.base, {KIND_KEY: weights.kind})
