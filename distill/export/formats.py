"""The formats by name. A new one is a file, an entry here, and its name in distill/export/__init__.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.export.base_weights import BaseWeights
from distill.export.diffusers_file import write_diffusers
from distill.export.exported import Export, ExportOptions, Writer
from distill.export.kohya import write_kohya
from distill.export.merged import write_merged, write_merged_parts
from distill.export.native_file import write_native
from distill.export.peft_folder import write_peft
from distill.export.student import Student

WRITERS: dict[str, Writer] = {
    "peft": write_peft,
    "safetensors": write_native,
    "kohya": write_kohya,
    "diffusers": write_diffusers,
    "merged": write_merged,
    "merged-parts": write_merged_parts,
}
NEED_BASE = ("merged", "merged-parts")
SUFFIXES = {"peft": (), "merged": (".safetensors", ".ckpt")}
"""Suffixes of the file; those of other formats are `_USUAL`. PEFT's is a folder."""
_USUAL = (".safetensors",)


def export(student: Student, format_: str, out: Path, options: ExportOptions) -> Export:
    """Writes the student in a format of `WRITERS`. Raises ValueError in one line; then nothing is written.

    The base weights are read for `merged` formats, and of others for the metadata where they are there.
    """
    suffixes = SUFFIXES.get(format_, _USUAL)
    if out.suffix not in suffixes and suffixes:
        raise ValueError(f"--out {out}: a file of format {format_} ends in {' or '.join(suffixes)}")
    if options.base is None:
        options = replace(options, base=_base(student, must_be=format_ in NEED_BASE))
    return WRITERS[format_](student, out, options)


def _base(student: Student, must_be: bool) -> BaseWeights | None:
    recipe = student.recipe
    try:
        return BaseWeights(recipe.model, recipe.seed, student.model)
    except (ValueError, OSError) as error:
        if must_be:
            raise ValueError(f"{error}; the weights that the LoRA belongs to are needed: model.weights=FILE") from error
        return None
