"""Joins trained parts into one checkpoint with the official keys.

python launch/export_weights.py --parts runs/tiny_vae runs/tiny_recognizer runs/tiny_teacher --out FILE.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.common.cli import is_command, require_output_file, run_command
from launch.common.tool_parsers import parse_export as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

import torch

from anytext2.model.weights import save_weights
from distill.config.schema import ModelConfig
from distill.inference.model import make_model

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: export(args))


def export(args: argparse.Namespace) -> None:
    """Writes the file and prints its size. Raises ValueError for parts that do not fit the model."""
    require_output_file(args.out, "--out")
    model = make_model(ModelConfig(args.config, args.weights, args.parts), seed=0)
    save_weights(model, args.out, DTYPES[args.dtype])
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB in {args.dtype}")


if __name__ == "__main__":
    raise SystemExit(main())
