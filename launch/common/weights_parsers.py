"""The command lines of the commands that read and write weights. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.export import FORMATS
from launch.common.command_help import command_parser


def parse_make_teacher(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/make_teacher.py."""
    parser = command_parser(
        "Make an untrained AnyText2 of a Stable Diffusion 1.5.",
        "python launch/make_teacher.py sd15.safetensors --ocr ppv3_rec.pth --out runs/models/scratch.ckpt",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="SD15", help="its .safetensors or .ckpt file")
    add(
        "--ocr",
        type=Path,
        required=True,
        metavar="FILE",
        help="the recogniser: ppv3_rec.pth, or an AnyText2 checkpoint",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="a .ckpt or .safetensors file")
    add("--vae", type=Path, metavar="FILE", help="take the VAE from it")
    add("--text-encoder", type=Path, metavar="FILE", help="take the text encoder from it (CLIP ViT-L/14)")
    add("--ema", action="store_true", help="take the UNet's averaged weights (model_ema.*)")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the new layers")
    add("--config", default="sd15", help="model config: a name or a YAML file; default: %(default)s")
    return parser.parse_args(argv)


def parse_merge_adapters(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/merge_adapters.py."""
    parser = command_parser(
        "Combine LoRAs into one.",
        "python launch/merge_adapters.py runs/demo:1.0 style.safetensors:0.7 --out runs/models/combined",
    )
    add = parser.add_argument
    add("adapters", nargs="+", metavar="ADAPTER:SCALE", help="runs, checkpoints, PEFT folders or LoRA files; scale 1")
    add("--method", default="cat", metavar="NAME", help="cat, svd, ties, dare_ties, magnitude_prune, linear or zip")
    add("--rank", type=int, metavar="R", help="of what svd makes; default: the largest of the adapters'")
    add("--density", type=float, default=0.5, help="share that ties, dare_ties, magnitude_prune keep; %(default)s")
    add("--seed", type=int, default=0, help="of what dare_ties drops")
    add("--config", type=Path, metavar="YAML", help="recipe of the model; default: the first adapter's")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder, in PEFT's format")
    return parser.parse_args(argv)


def parse_export_student(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/export.py."""
    parser = command_parser(
        "Write a student for other programs.",
        "python launch/export.py runs/demo --format kohya --out runs/models/demo.safetensors",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder (its newest checkpoint), RUN/best, checkpoint-N, or a LoRA")
    add("--format", choices=FORMATS, required=True, help="what is written; docs/EXPORT.md says what each program gets")
    add("--out", type=Path, metavar="PATH", help="a file, of peft a folder; default: runs/export/NAME/NAME-FORMAT")
    add("--dtype", choices=("fp32", "fp16", "bf16"), help="default: fp16 for merged weights, else fp32")
    add("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint, or in the file")
    add("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")
    return parser.parse_intermixed_args(argv)


def parse_quantize(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/quantize.py."""
    parser = command_parser(
        "Write a student with 8-bit weights.",
        "python launch/quantize.py runs/demo --out runs/models/demo_int8.safetensors",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="RUN", help="run folder, checkpoint-N or PEFT adapter")
    add("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file; a report .json is written beside")
    add("--keep", type=float, default=0.03, metavar="SHARE", help="of the weights that stay in 16 bits; %(default)s")
    add("--data", type=Path, action="append", default=[], metavar="JSON", help="measure on it; default: the run's data")
    add("--samples", type=int, default=4, metavar="N", help="pictures to measure on; default: %(default)s")
    add("--steps", type=int, metavar="N", help="of the student; default: its own")
    add("--seed", type=int, default=0, help="of the noise")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint")
    add("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")
    return parser.parse_intermixed_args(argv)
