"""Compares runs: `python launch/compare.py runs/A runs/B [RUN ...] [--out FILE.png]`.

Prints the settings that differ and the results side by side, and writes one picture with the curves of all runs and the
last preview of each. Reads run folders only, no MLflow. Exit code 0: done; 2: one run, a folder of none, a wrong path.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.common.cli import is_command, require_output_file, run_command
from launch.common.tool_parsers import parse_compare as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from anytext2.core.files import whole_file
from distill.evaluation.score_table import align_columns
from distill.tracking.reports.comparison import different_settings, draw_comparison, read_runs, results


def compare(args: argparse.Namespace) -> None:
    """Prints both tables and writes the picture. Raises ValueError for what is no two runs."""
    runs = read_runs(args.runs)
    if args.out.suffix != ".png":
        raise ValueError(f"--out {args.out}: is written as PNG; name a file that ends in .png")
    require_output_file(args.out, "--out")
    labels = [run.label for run in runs]
    settings = different_settings(runs)
    print(align_columns(["setting", *labels], settings) if settings else "all settings are the same")
    print()
    print(align_columns(["result", *labels], results(runs)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as file:
        draw_comparison(runs, file)
    print(f"\nwrote {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: compare(args))


if __name__ == "__main__":
    raise SystemExit(main())
