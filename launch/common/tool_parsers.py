"""The command lines of the commands that sample and train nothing. Imports nothing heavy, as parsers.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from anytext2.synthetic.options import SyntheticConfig
from distill.export import FORMATS

SYNC_EPILOG = """\
Exit code 0: everything is in MLflow; 1: something is not, because MLflow does not answer or refuses a record; 2: MLflow
refuses the run for good (a deleted experiment, a wrong address, no permission), a folder holds no journals, or a run on
this file system is alive in it, which then sends by itself. A lock on the run folder tells; where the file system has
no locks it cannot be told, and sending twice at once does no harm.
"""


def parse_make_dataset(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/make_dataset.py."""
    defaults = SyntheticConfig()
    parser = argparse.ArgumentParser(description="Write a synthetic dataset in the AnyWord format.")
    add = parser.add_argument
    add("--out", required=True, help="folder for data.json and imgs/")
    add("--count", type=int, required=True, help="number of pictures")
    add("--seed", type=int, default=0)
    add("--size", type=int, default=defaults.size, help="side of a picture in pixels; default: %(default)s")
    add("--workers", type=int, default=1, help="number of processes; it does not change the pictures")
    add("--first-index", type=int, default=0, help="of the first picture, for another part of the same dataset")
    add("--format", choices=("png", "jpg"), default=defaults.image_format)
    add("--fonts", default=defaults.fonts, help="font table (YAML)")
    lines = "of the lines, drawn in the first font of their language, the one of the glyph pages; default %(default)s"
    add("--default-font", type=float, default=defaults.default_font, metavar="FRACTION", help=lines)
    for name, what in (("outline", "a rim"), ("shadow", "a shade")):
        described = f"of the pictures, whose letters have {what}; default %(default)s"
        add(f"--{name}", type=float, default=getattr(defaults, name), metavar="FRACTION", help=described)
    for name in ("latin", "chinese"):
        least = getattr(defaults, f"{name}_height")[0]
        described = f"of the smallest {name.capitalize()} lines; default %(default)s"
        add(f"--{name}-height", type=int, default=least, metavar="PIXELS", help=described)
    return parser.parse_args(argv)


def parse_export(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/export_weights.py."""
    parser = argparse.ArgumentParser(description="Join trained parts into one checkpoint with the official keys.")
    add = parser.add_argument
    add("--config", default="tiny", help="model config: a name or a YAML file")
    add("--weights", default="scratch", help="what lies under the parts: scratch, embedded or a file")
    add("--parts", nargs="+", default=[], metavar="DIR", help="run folders or files, later ones on top")
    add("--out", type=Path, required=True, help="a .safetensors or .ckpt file")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16")
    return parser.parse_args(argv)


def parse_make_teacher(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/make_teacher.py."""
    parser = argparse.ArgumentParser(description="Make an untrained AnyText2 of a Stable Diffusion 1.5.")
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
    parser = argparse.ArgumentParser(description="Combine LoRAs into one.")
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
    parser = argparse.ArgumentParser(description="Write a student for other programs.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder (its newest checkpoint), RUN/best, checkpoint-N, or a LoRA")
    add("--format", choices=FORMATS, required=True)
    add("--out", type=Path, metavar="PATH", help="a file, of peft a folder; default: runs/export/NAME/NAME-FORMAT")
    add("--dtype", choices=("fp32", "fp16", "bf16"), help="default: fp16 for merged weights, else fp32")
    add("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint, or in the file")
    add("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")
    return parser.parse_intermixed_args(argv)


def parse_quantize(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/quantize.py."""
    parser = argparse.ArgumentParser(description="Write a student with 8-bit weights.")
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


def parse_sync_tracking(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/sync_tracking.py."""
    parser = argparse.ArgumentParser(description="Send what is left of runs' journals to MLflow.", epilog=SYNC_EPILOG)
    add = parser.add_argument
    add("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="the folder of a run")
    add("--uri", help="an MLflow's tracking URI; default: the one that the run was told")
    add("--experiment", help="default: the one that the run was told, else anytext2-distill")
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds for each run; default: 300")
    return parser.parse_args(argv)


def parse_submit(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/slurm/submit.py."""
    parser = argparse.ArgumentParser(description="Submit a training to SLURM.")
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="a file of launch/recipes, or your own")
    add("--nodes", type=int, default=1)
    add("--gpus", type=int, default=3, help="on each node (default: 3)")
    add("--cpus", type=int, help="of each rank (default: one, and one for each data worker)")
    add("--time", default="1-00:00:00", help="limit, as SLURM writes it (default: %(default)s)")
    add("--signal-lead", type=int, default=300, metavar="S", help="warn so long before it (default: 300)")
    for name in ("mem", "partition", "account", "qos"):
        add(f"--{name}", default="", help="as sbatch's")
    add("--logs", type=Path, metavar="DIR", help="default: runs/slurm")
    add("--begin", default="", help="start then, as in now+1hour or 22:00")
    add("--every", default="", metavar="TIME", help="and again that long after each start, as in 24hours")
    add("--singleton", action="store_true", help="not while another job of this run is queued or runs")
    add("--array", type=Path, metavar="FILE", help="a sweep: one line of key=value words for each job")
    add("--array-limit", type=int, default=0, metavar="K", help="at most K of them at once")
    add("--max-requeues", type=int, default=20, metavar="N", help="of a stopped run (default: 20)")
    add("--deepspeed", type=Path, default=Path("ds_configs/zero2.json"), metavar="JSON")
    add("--dry-run", action="store_true", help="print the script instead")
    add("overrides", nargs="*", metavar="key=value", help="recipe values")
    return parser.parse_intermixed_args(argv)
