"""diffusers' format, for `load_lora_weights`: unet.PATH.lora_A.weight and .lora_B.weight.

Releases differ in how they take alpha, but all use the scale 1 where none is told, so the scale is put into B.
"""

from __future__ import annotations

from pathlib import Path

from distill.adapter_files.lora_weights import A, B
from distill.export.exported import Export, ExportOptions, cast, renamed, sd_layers, write_lora
from distill.export.student import Student


def write_diffusers(student: Student, out: Path, options: ExportOptions) -> Export:
    """Writes what a plain SD 1.5 UNet has."""
    layers, left_out = sd_layers(student, "diffusers")
    names = {path: f"unet.{name}" for path, name in layers.items()}
    tensors = renamed(student, names, A, B)
    for path, name in names.items():
        tensors[f"{name}.{B}"] = tensors[f"{name}.{B}"] * student.weights.scale(path)
    return write_lora(student, out, "diffusers", cast(tensors, options.torch_dtype("fp32")), left_out, options.base)
