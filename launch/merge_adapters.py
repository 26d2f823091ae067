"""Combines LoRAs into one: a student and a style, or several students.

python launch/merge_adapters.py runs/demo:1.0 style.safetensors:0.7 --method cat --out runs/demo_style
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from launch.common.cli import is_command, require_output_folder, run_command
from launch.common.weights_parsers import parse_merge_adapters as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from anytext2.model.anytext2 import build_model
from anytext2.model.config import load_model_config
from distill.adapter_files.combine import Combination, Method, ScaledLora, combine
from distill.adapter_files.lora_weights import peft_config
from distill.adapter_files.reader import read_lora
from distill.adapters.added import adapter_place, named_scale
from distill.checkpoint.formats import write_adapter
from distill.checkpoint.run_folder import RECIPE, recipe_of
from distill.config.recipes import DEFAULT_RECIPE, load_recipe

COMBINED = "combined.json"
"""What the adapter was combined of, beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: merge_adapters(args))


def merge_adapters(args: argparse.Namespace) -> None:
    """Writes the combined adapter as a PEFT folder, with the first adapter's recipe. Raises ValueError in one line."""
    require_output_folder(args.out, "--out")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"--out {args.out}: exists and is not empty; name another folder")
    if len(args.adapters) < 2:
        raise ValueError(f"{args.adapters[0]}: one adapter is nothing to combine; name two or more")
    method = Method(args.method, args.rank, args.density, args.seed)
    places = [(adapter_place(path), scale) for path, scale in map(named_scale, args.adapters)]
    recipe = args.config or recipe_of(places[0][0]) or DEFAULT_RECIPE
    model = build_model(load_model_config(load_recipe(recipe).model.config), "meta")
    parts = [ScaledLora(read_lora(path, model), scale) for path, scale in places]
    found = combine(parts, method)
    _write(args.out, found, parts, method, recipe)
    _report(args.out, found, parts, method)


def _write(out: Path, found: Combination, parts: Sequence[ScaledLora], method: Method, recipe: Path) -> None:
    """The folder, whole or not at all."""
    hidden = out.with_name(f".{out.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        write_adapter(hidden, found.weights.tensors, peft_config(found.weights))
        shutil.copyfile(recipe, hidden / RECIPE)
        said = {
            "method": method.name,
            "adapters": [{"path": str(part.weights.path), "scale": part.scale} for part in parts],
            "rank": next(iter(found.weights.ranks.values())),
        }
        (hidden / COMBINED).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(hidden, out)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def _report(out: Path, found: Combination, parts: Sequence[ScaledLora], method: Method) -> None:
    for part in parts:
        left = ", ".join(f"{count} layers of the {name} left out" for name, count in part.weights.left_out.items())
        layers = f"{len(part.weights.modules)} layers"
        print(f"{part.weights.path}: {part.weights.format}, {layers}, scale {part.scale:g}{left and '; ' + left}")
    rank = next(iter(found.weights.ranks.values()))
    print(f"{out}: {len(found.weights.modules)} layers of rank {rank}, by {method.name}")
    if found.kept:
        worst = min(found.kept, key=found.kept.__getitem__)
        mean = sum(found.kept.values()) / len(found.kept)
        print(f"rank {rank} keeps {mean:.1%} of the squares of the deltas, least {found.kept[worst]:.1%} in {worst}")
    print(f"draw with it: python launch/infer.py --checkpoint {out} --prompt 'a sign that reads \"OPEN\"'")


if __name__ == "__main__":
    raise SystemExit(main())
