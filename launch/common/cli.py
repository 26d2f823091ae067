"""What the commands share: option groups, `run_command` for errors and exit codes. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

USAGE_ERROR = 2
"""Exit code: the command, a file or a value is wrong."""


def run_command(work: Callable[[], int | None], errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> int:
    """The exit code of `work`, None counting as 0. One of `errors` becomes one line on stderr, and exit code 2."""
    try:
        return work() or 0
    except errors as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USAGE_ERROR


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model is sampled, and where: `load_sampling_model` takes them."""
    parser.add_argument(
        "--checkpoint", "--run", type=Path, metavar="DIR", help="checkpoint-N, run folder or PEFT adapter"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    add_device_option(parser, "auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")


def add_device_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--device", default="auto", help=what)


def add_sampling_options(parser: argparse.ArgumentParser, batch: int) -> None:
    """Guidance, noise and batch of sampling. Options of guidance are None where the command does not name them."""
    parser.add_argument("--guidance", type=float, help="of the teacher; 1: none; default: as distilled")
    parser.add_argument(
        "--student-guidance", type=float, metavar="G", help="more guidance of the student; default 1: none"
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from")
    parser.add_argument(
        "--gamma", type=float, default=0.3, help="of the trajectory sampler: the share of noise put back"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--batch", type=int, default=batch, metavar="N", help="pictures sampled together")


def int_list(text: str) -> list[int]:
    """The type of an option as in `1,2,4,8`."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers are needed, as in 1,2,4,8") from error


def require_at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raises ValueError where one of the options is given and smaller."""
    for name in names:
        value = getattr(args, name.replace("-", "_"))
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: must be at least {least}")
