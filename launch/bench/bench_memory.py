"""Memory of the student by recomputation: `python launch/bench/bench_memory.py [--tiny] [--size PX] [key=value ...]`.

Runs the production recipe's student on fake tensors, which takes seconds and no memory. Prints which parts of the
networks give back most memory for the time of their recomputation, and the peak for each setting of
model.activation_checkpointing and micro-batch. Writes runs/bench/memory.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from anytext2.model.recomputation import RECOMPUTATIONS
from distill.config.recipes import find_recipe, load_recipe
from launch.bench.saved_memory import Student, make_student, measure_parts, plain_convolutions
from launch.common.command_help import command_parser

FOLDER = Path("runs/bench")
MICRO_BATCHES = (1, 2, 4, 8, 16)
FIXED_GIB, OVERHEAD = 3.05, 1.05
"""Peak of the official size on a GPU = FIXED_GIB + OVERHEAD x saved bytes: a fit to four peaks measured on an H200 with
the convolutions of PyTorch and no recomputation (docs/PERFORMANCE.md, "Memory")."""
PLAIN = "none, PyTorch's convolutions"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "Memory of the student by what is recomputed.", "python launch/bench/bench_memory.py --tiny lora.rank=16"
    )
    parser.add_argument("--config", type=Path, default=Path("rtx4090x3.yaml"), metavar="YAML", help="recipe")
    parser.add_argument("--tiny", action="store_true", help="the tiny model instead of the official size")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of the pictures")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values")
    args = parser.parse_intermixed_args(argv)
    size = ["model.config=tiny"] if args.tiny else []
    recipe = load_recipe(find_recipe(args.config), [*size, *args.overrides])
    student = make_student(recipe, 1, args.size)
    saved = saved_by_setting(student)
    student.use_recomputation("none")
    parts = measure_parts(student)
    print("| part | cells | modules | MiB saved | ms | GB saved a second |\n|---|---|---|---|---|---|")
    for part in parts:
        row = (part.kind, part.cells, part.count, f"{part.saved / 2**20:.0f}", f"{part.seconds * 1e3:.2f}")
        print("|", " | ".join(map(str, row)), f"| {part.ratio:.0f} |")
    heads = " | ".join(f"{batch}" for batch in MICRO_BATCHES)
    print(
        f"\n| recomputed | MiB a sample | peak in GiB at micro-batch {heads} |\n|---|---{'|---' * len(MICRO_BATCHES)}|"
    )
    for setting, count in saved.items():
        print(f"| {setting} | {count / 2**20:.0f} |", " | ".join(f"{peak(count, n):.1f}" for n in MICRO_BATCHES), "|")
    content = {"size": args.size, "saved": saved, "parts": [asdict(part) for part in parts]}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "memory.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FOLDER / 'memory.json'}")
    return 0


def saved_by_setting(student: Student) -> dict[str, int]:
    """Bytes that one forward pass keeps, by setting of model.activation_checkpointing."""
    with plain_convolutions(student.model):
        saved = {PLAIN: student.saved_bytes()}
    for setting in RECOMPUTATIONS:
        student.use_recomputation(setting)
        saved[setting] = student.saved_bytes()
    return saved


def peak(saved: int, batch: int) -> float:
    """The expected peak in GiB of a micro-step of the official size."""
    return FIXED_GIB + OVERHEAD * saved * batch / 2**30


if __name__ == "__main__":
    raise SystemExit(main())
