"""Makes an untrained AnyText2 of a Stable Diffusion 1.5 and a line recogniser.

python launch/make_teacher.py v1-5-pruned.safetensors --ocr ppv3_rec.pth --out models/anytext2_scratch.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.common.cli import is_command, require_output_file, run_command
from launch.common.weights_parsers import parse_make_teacher as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

import torch

from anytext2.model.config import load_model_config
from anytext2.model.stable_diffusion import new_teacher, read_recognizer, read_stable_diffusion
from distill.export.tensor_files import TensorSpec, write_tensor_file

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: make_teacher(args))


def make_teacher(args: argparse.Namespace) -> None:
    """Writes the checkpoint and says what it was made of. Raises ValueError for files that are not what is needed."""
    require_output_file(args.out, "--out")
    if args.out.suffix not in (".ckpt", ".safetensors"):
        raise ValueError(f"--out {args.out}: name a .ckpt or .safetensors file")
    config = load_model_config(args.config)
    source = read_stable_diffusion(args.checkpoint, args.vae, args.text_encoder, args.ema)
    recognizer = read_recognizer(args.ocr)
    teacher = new_teacher(config, source, recognizer, DTYPES[args.dtype], args.seed, str(args.checkpoint))
    specs = [TensorSpec(name, tuple(like.shape), like.dtype) for name, like in teacher.like.items()]
    write_tensor_file(args.out, specs, teacher)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {size:.1f} MB in {args.dtype}; {len(teacher.copied)} tensors copied, {len(teacher.new)} new")
    print(f"train it: --config launch/recipes/teacher_sd15.yaml model.weights={args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
