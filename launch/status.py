"""Says how a run stands: `python launch/status.py runs/NAME [RUN ...]`, from another shell or another machine.

Reads small files of the run folder and writes none: where the run is, how fast, how much memory, its last pictures, and
what the next signal would do. Under SLURM it also asks `squeue` about the job. Exit code 0: said; 2: no run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.common.cli import is_command, run_command
from launch.common.tool_parsers import parse_status as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.tracking.reports.standing import read_standing, standing_lines


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return max(run_command(partial(say, run)) for run in args.runs)


def say(run_dir: Path) -> None:
    """Prints how one run stands. Raises ValueError for a folder that is no run's."""
    print("\n".join(standing_lines(read_standing(run_dir))))


if __name__ == "__main__":
    raise SystemExit(main())
