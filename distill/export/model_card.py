"""The model card: README.md beside exported files, with pictures and the table of the run's evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from anytext2.core.files import whole_file
from distill.adapter_files.metadata import BASE, FORMAT, read_note
from distill.export.student import GRID, Student

CARD, PICTURES = "README.md", "pictures.jpg"
MARK = "<!-- written by launch/export.py, which writes it again for every export into this folder -->"
_WIDTH = 1600
"""Pixels of the picture, and at most as many rows."""
_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth"}

_USES = {
    "peft": "`PeftModel.from_pretrained` on the reference model; here `--checkpoint FOLDER`",
    "safetensors": "here: `--checkpoint {name}` draws, `lora.weights={name}` starts a training",
    "kohya": "the LoRA folder of ComfyUI, A1111, Forge; with guidance 1 and the times above",
    "diffusers": '`pipe.load_lora_weights(".", weight_name="{name}")`; with guidance 1 and the times above',
    "merged": "the reference program's checkpoint, with the times above; here `--checkpoint {name}`",
    "merged-parts": "over the same base here: `--checkpoint {name}`, or `model.parts=[{name}]`",
}
_LEFT_OUT = {"merged-parts": "all weights that the LoRA does not change"}
_ROWS = (
    ("steps", "steps", "{}"),
    ("guidance", "guidance", "{:g}"),
    ("nfe", "UNet calls", "{}"),
    ("exact_match", "Sen.ACC", "{:.3f}"),
    ("ned", "NED", "{:.3f}"),
    ("latent_rmse", "latent RMSE", "{:.3f}"),
    ("seconds_per_image", "s/picture", "{:.2f}"),
)


def write_card(student: Student, folder: Path) -> Path | None:
    """Writes the card of all exported files in the folder; None where a README.md of another origin is there."""
    card = folder / CARD
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return None
    exports = _exports(folder)
    assert exports, folder
    note = next(iter(exports.values()))
    picture = _picture(student, folder)
    parts = [f"# {student.name}: AnyText2 in {note['steps']} steps", MARK, _introduction(note)]
    parts += [f"![The run's evaluation: original, hint, teacher and student]({PICTURES})"] if picture else []
    parts += ["## Sampling", _sampling(note), "## Files", _files(exports), "## Evaluation", _evaluation(student)]
    with whole_file(card) as hidden:
        hidden.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return card


def _exports(folder: Path) -> dict[Path, dict[str, Any]]:
    """The exported files in a folder, and a PEFT folder itself, with their notes."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and not path.name.startswith(".")]
    notes = {path: read_note(path) for path in files}
    return {path: note for path, note in notes.items() if note is not None}


def _introduction(note: dict[str, Any]) -> str:
    base = note[BASE] or {}
    of = f" (base weights {base['file']}, SHA-256 {base['sha256'][:16] or 'none'})" if base else ""
    trained = "" if note["updates"] is None else f", {note['updates']} updates"
    return (
        f"A student of AnyText2, which draws words in pictures, distilled to {note['steps']} steps{of}. Objective "
        f"`{note['objective']}`{trained}; {note['lora']['kind']} of {sum(note['lora']['layers'].values())} layers."
    )


def _sampling(note: dict[str, Any]) -> str:
    """The sampler and its times; note: its JSON may have texts as numbers of steps."""
    rows = [f"| {steps} | {', '.join(map(str, times))} |" for steps, times in note["times"].items()]
    table = "\n".join(["| steps | timesteps |", "|---|---|", *rows])
    scale = " to ".join(f"{value:g}" for value in sorted(set(note["guidance_distilled"])))
    text = (
        f"Sampler `{note['sampler']}`, guidance 1, no negative prompt: the teacher's guidance ({scale}) is in "
        "the weights, and more of it burns the picture."
    )
    return f"{text}\n\n{table}"


def _files(exports: dict[Path, dict[str, Any]]) -> str:
    rows = ["| file | format | MB | what is not in it | use |", "|---|---|---|---|---|"]
    for path, note in exports.items():
        left_out = ", ".join(f"{family} ({n})" for family, n in note["left_out"].items())
        left_out = left_out or _LEFT_OUT.get(note[FORMAT], "nothing")
        use = _USES[note[FORMAT]].format(name=path.name)
        rows.append(f"| `{path.name}` | {note[FORMAT]} | {path.stat().st_size / 1e6:.1f} | {left_out} | {use} |")
    return "\n".join(rows)


def _evaluation(student: Student) -> str:
    if student.evaluation is None:
        return "This checkpoint has not been measured; `launch/evaluate.py` does, and the next export shows it."
    head = ["row", *(title for _, title, _ in _ROWS)]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in student.evaluation.get("rows", ()):
        cells = [form.format(row[key]) if row.get(key) is not None else "" for key, _, form in _ROWS]
        rows.append(f"| {row['role']}, {row['sampler']} | {' | '.join(cells)} |")
    pictures, engine = student.evaluation.get("pictures"), student.evaluation.get("ocr_engine")
    return "\n".join([f"{pictures} held-out pictures, lines read by {engine}.", "", *rows])


def _picture(student: Student, folder: Path) -> bool:
    """Writes the top of the evaluation's grid as a small JPEG. False where there is none of this checkpoint."""
    if student.evaluation is None or student.run_dir is None or not (student.run_dir / GRID).is_file():
        return False
    with Image.open(student.run_dir / GRID) as grid:
        small = grid.convert("RGB")
    small.thumbnail((_WIDTH, 16 * _WIDTH))
    small = small.crop((0, 0, small.width, min(small.height, _WIDTH)))
    with whole_file(folder / PICTURES) as hidden:
        small.save(hidden, quality=85)
    return True
