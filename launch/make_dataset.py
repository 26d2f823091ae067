"""Writes a synthetic dataset in the AnyWord format: `python launch/make_dataset.py --out DIR --count 1000`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from launch.common.cli import is_command, require_output_folder, run_command
from launch.common.tool_parsers import parse_make_dataset as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset


def draw(args: argparse.Namespace) -> None:
    """Draws the pictures and prints how many. Raises ValueError for impossible options."""
    require_output_folder(Path(args.out), "--out")
    began, default = time.perf_counter(), SyntheticConfig()
    config = SyntheticConfig(
        size=args.size,
        image_format=args.format,
        fonts=args.fonts,
        default_font=args.default_font,
        outline=args.outline,
        shadow=args.shadow,
        latin_height=(args.latin_height, default.latin_height[1]),
        chinese_height=(args.chinese_height, default.chinese_height[1]),
    )
    counts = write_dataset(args.out, args.count, config, args.seed, args.first_index, args.workers)
    seconds = time.perf_counter() - began
    by_kind = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if name not in ("pictures", "lines"))
    print(
        f"{args.out}/data.json: {counts['pictures']} pictures, {counts['lines']} lines in {seconds:.1f} s ({by_kind})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: draw(args))


if __name__ == "__main__":
    raise SystemExit(main())
