"""kohya's format, which sd-scripts, ComfyUI and the A1111 family read: lora_unet_*.lora_down, .lora_up and .alpha.

Layers have diffusers' paths with underscores. B A is multiplied by alpha / rank.
"""

from __future__ import annotations

from pathlib import Path

import torch

from distill.adapter_files.names import kohya_name
from distill.export.exported import Export, ExportOptions, cast, renamed, sd_layers, write_lora
from distill.export.student import Student


def write_kohya(student: Student, out: Path, options: ExportOptions) -> Export:
    """Writes what a plain SD 1.5 UNet has. The alpha of an rsLoRA is written so that the product is the same."""
    layers, left_out = sd_layers(student, "kohya")
    names = {path: kohya_name(name) for path, name in layers.items()}
    tensors = cast(renamed(student, names, "lora_down.weight", "lora_up.weight"), options.torch_dtype("fp32"))
    weights = student.weights
    for path, name in names.items():
        tensors[f"{name}.alpha"] = torch.tensor(weights.scale(path) * weights.ranks[path])
    return write_lora(student, out, "kohya", tensors, left_out, options.base)
