"""Joins trained parts into one checkpoint with the official keys.

python launch/export_weights.py --parts runs/tiny_vae runs/tiny_recognizer runs/tiny_teacher --out FILE.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from anytext2.model.weights import save_weights
from distill.config.schema import ModelConfig
from distill.inference.model import make_model
from launch.common.cli import run_command

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Join trained parts into one checkpoint with the official keys.")
    parser.add_argument("--config", default="tiny", help="model config: a name or a YAML file")
    parser.add_argument("--weights", default="scratch", help="what lies under the parts: scratch, embedded or a file")
    parser.add_argument("--parts", nargs="+", default=[], metavar="DIR", help="run folders or files, later ones on top")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors or .ckpt file")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    args = parser.parse_args(argv)
    return run_command(lambda: export(args))


def export(args: argparse.Namespace) -> None:
    """Writes the file and prints its size. Raises ValueError for parts that do not fit the model."""
    model = make_model(ModelConfig(args.config, args.weights, args.parts), seed=0)
    save_weights(model, args.out, DTYPES[args.dtype])
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB in {args.dtype}")


if __name__ == "__main__":
    raise SystemExit(main())
