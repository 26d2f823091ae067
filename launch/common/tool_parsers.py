"""The command lines of the commands that sample and train nothing. Imports nothing heavy, as parsers.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from anytext2.synthetic.options import SyntheticConfig
from launch.common.command_help import command_parser

SYNC_EPILOG = """\
Exit code 0: everything is in MLflow; 1: something is not, because MLflow does not answer or refuses a record; 2: MLflow
refuses the run for good (a deleted experiment, a wrong address, no permission), a folder holds no journals, or a run on
this file system is alive in it, which then sends by itself. A lock on the run folder tells; where the file system has
no locks it cannot be told, and sending twice at once does no harm.
"""


def parse_make_dataset(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/make_dataset.py."""
    defaults = SyntheticConfig()
    parser = command_parser(
        "Write a synthetic dataset in the AnyWord format.",
        "python launch/make_dataset.py --out runs/drawn --count 200 --size 128 --outline 0.3",
    )
    add = parser.add_argument
    add("--out", required=True, help="folder for data.json and imgs/")
    add("--count", type=int, required=True, help="number of pictures")
    add("--seed", type=int, default=0, help="of the pictures")
    add("--size", type=int, default=defaults.size, help="side of a picture in pixels; default: %(default)s")
    add("--workers", type=int, default=1, help="number of processes; it does not change the pictures")
    add("--first-index", type=int, default=0, help="of the first picture, for another part of the same dataset")
    add("--format", choices=("png", "jpg"), default=defaults.image_format, help="of the picture files")
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
    parser = command_parser(
        "Join trained parts into one checkpoint with the official keys.",
        "python launch/export_weights.py --parts runs/tiny_vae runs/tiny_teacher --out runs/teacher.safetensors",
    )
    add = parser.add_argument
    add("--config", default="tiny", help="model config: a name or a YAML file")
    add("--weights", default="scratch", help="what lies under the parts: scratch, embedded or a file")
    add("--parts", nargs="+", default=[], metavar="DIR", help="run folders or files, later ones on top")
    add("--out", type=Path, required=True, help="a .safetensors or .ckpt file")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16", help="of the stored weights")
    return parser.parse_args(argv)


def parse_sync_tracking(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/sync_tracking.py."""
    parser = command_parser(
        "Send what is left of runs' journals to MLflow.",
        "python launch/sync_tracking.py runs/demo --uri http://127.0.0.1:5000",
        SYNC_EPILOG,
    )
    add = parser.add_argument
    add("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="the folder of a run")
    add("--uri", help="an MLflow's tracking URI; default: the one that the run was told")
    add("--experiment", help="default: the one that the run was told, else anytext2-distill")
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds for each run; default: 300")
    return parser.parse_args(argv)


def parse_status(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/status.py."""
    parser = command_parser(
        "Say how a run stands: place, speed, memory, pictures, and what the next signal would do.",
        "python launch/status.py runs/demo",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    return parser.parse_args(argv)


def parse_compare(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/compare.py."""
    parser = command_parser(
        "Compare runs: the settings that differ, their results side by side, and a picture.",
        "python launch/compare.py runs/phased runs/consistency --out runs/both.png",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the folders of at least two runs")
    add("--out", type=Path, default=Path("runs/compare.png"), metavar="PNG", help="default: %(default)s")
    return parser.parse_args(argv)


def parse_submit(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of launch/slurm/submit.py."""
    parser = command_parser(
        "Submit a training to SLURM.",
        "python launch/slurm/submit.py launch/recipes/rtx4090x3.yaml --partition gpu --time 1-00:00:00 --dry-run",
    )
    add = parser.add_argument
    add("recipe", type=Path, metavar="RECIPE", help="a file of launch/recipes, or your own")
    add("--nodes", type=int, default=1, help="how many")
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
    add("--array-limit", type=int, default=0, metavar="K", help="at most K of them at once; default 0: all")
    add("--max-requeues", type=int, default=20, metavar="N", help="of a stopped run (default: 20)")
    add("--deepspeed", type=Path, default=Path("ds_configs/zero2.json"), metavar="JSON", help="its configuration")
    add("--dry-run", action="store_true", help="print the script instead")
    add("overrides", nargs="*", metavar="key=value", help="recipe values")
    return parser.parse_intermixed_args(argv)
