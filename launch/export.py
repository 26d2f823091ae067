"""Writes a student for other programs: `python launch/export.py runs/demo --format kohya --out FILE.safetensors`.

Formats: the adapter as a PEFT folder, as one file with native, kohya's or diffusers' names, and the official checkpoint
with the adapter in its weights, whole or only what changed. A model card, README.md, is written beside it. Exit code 0:
done; 2: the command, a file or a value is wrong, and nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.common.cli import is_command, require_output_file, run_command
from launch.common.weights_parsers import parse_export_student as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.adapter_files.names import count_families
from distill.export.exported import Export, ExportOptions
from distill.export.formats import export
from distill.export.model_card import write_card
from distill.export.notes import stem_of, usage_hint
from distill.export.student import Student, read_student


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Reads the student, writes it and its card, and says what is in the file and what is not."""
    student = read_student(args.run, args.config, args.overrides)
    suffix = {"peft": ""}.get(args.format, ".safetensors")
    out: Path = args.out or Path("runs/export") / stem_of(student) / f"{stem_of(student)}-{args.format}{suffix}"
    if args.format != "peft":
        require_output_file(out, "--out")
    written = export(student, args.format, out, ExportOptions(args.dtype or ""))
    print_export(student, written)
    card = write_card(student, out if out.is_dir() else out.parent)
    print(f"card: {card}" if card else f"card: none, {out.parent / 'README.md'} is somebody else's")


def print_export(student: Student, written: Export) -> None:
    """Says which adapter it is, what is left out, and how it is sampled."""
    note, path = written.note, written.path
    files = [path] if path.is_file() else sorted(path.iterdir())
    size = sum(file.stat().st_size for file in files) / 1e6
    trained = "" if student.updates is None else f", {student.updates} updates"
    print(f"{path}: {note['format']} of {student.source}{trained}; {written.layers} adapted layers, {size:.1f} MB")
    counts = count_families(student.weights.modules)
    for family, count in note["left_out"].items():
        print(f"left out: {family}, {count} of {counts[family]} layers: this format has no names for them")
    if note["base"] is None:
        print(
            "note: the base weights are not here, so their hash is not in the metadata; model.weights=FILE names them"
        )
    print(f"sampling: {usage_hint(note)}")


if __name__ == "__main__":
    raise SystemExit(main())
