"""PEFT's folder: adapter_config.json and adapter_model.safetensors, as training saves them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from distill.adapter_files.lora_weights import peft_config
from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_adapter
from distill.export.exported import Export, ExportOptions
from distill.export.notes import metadata_of, note_of
from distill.export.student import Student
from distill.export.tensor_files import require_room

_OURS = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md", "pictures.jpg"}


def write_peft(student: Student, out: Path, options: ExportOptions) -> Export:
    """Writes the folder whole or not at all; an earlier export is replaced.

    Raises ValueError where something else is in the folder, or for a precision other than fp32.
    """
    if options.dtype not in ("", "fp32"):
        raise ValueError(f"--dtype {options.dtype}: a PEFT folder is written in fp32")
    if strangers := sorted(path.name for path in out.glob("*") if path.name not in _OURS):
        raise ValueError(f"--out {out}: holds {strangers[0]}, which is no part of an adapter; name another folder")
    tensors = student.weights.tensors
    require_room(out, sum(tensor.nbytes for tensor in tensors.values()))
    note = note_of(student, "peft", options.base, {})
    hidden = out.with_name(f".{out.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        write_adapter(
            hidden, tensors, peft_config(student.weights), student.recipe.model.config, metadata_of(student, note)
        )
        if out.exists():
            shutil.rmtree(out)
        os.replace(hidden, out)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return Export(out, note, len(student.weights.modules))
