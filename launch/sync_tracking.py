"""Sends what is left of runs' journals to MLflow: `python launch/sync_tracking.py RUN_DIR [RUN_DIR ...]`.

The evaluations of a run are sent after it. For a run that ended while MLflow did not answer or with tracking switched
off, or, with --uri, for another MLflow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distill.checkpoint.run_folder import evaluation_folders
from distill.config.schema import TrackingConfig
from distill.tracking.sync import BusyError, sync
from launch.common.cli import run_command

EPILOG = """\
Exit code 0: everything is in MLflow; 1: something is not, because MLflow does not answer or refuses a record; 2: MLflow
refuses the run for good (a deleted experiment, a wrong address, no permission), a folder holds no journals, or a run on
this file system is alive in it, which then sends by itself. A lock on the run folder tells; where the file system has
no locks it cannot be told, and sending twice at once does no harm.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Send what is left of runs' journals to MLflow.", epilog=EPILOG)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="the folder of a run")
    parser.add_argument("--uri", help="an MLflow's tracking URI; default: the one that the run was told")
    parser.add_argument(
        "--experiment", help="default: the one that the run was told, else " + TrackingConfig.experiment
    )
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds for each run; default: 300")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    folders = (folder for given in args.run_dirs for folder in (given, *evaluation_folders(given)))
    return max(run_command(partial(send, folder, args), (ValueError, OSError, BusyError)) for folder in folders)


def send(run_dir: Path, args: argparse.Namespace) -> int:
    """Sends one folder's journals: 0, or 1 where something is left. Raises ValueError where MLflow refuses for good."""
    if not args.timeout > 0:
        raise ValueError(f"--timeout {args.timeout:g} must be positive, in seconds")
    report = sync(run_dir, args.uri, args.experiment, args.timeout)
    if report.refusal:
        remedy = report.refusal.replace("tracking.uri", "--uri").replace("tracking.experiment", "--experiment")
        raise ValueError(f"{run_dir}: MLflow cannot be used: {remedy}")
    counts = ", ".join(f"{n} {name}" for name, n in report.counts.items()) or "nothing"
    left = report.unsent + report.counts.get("refused", 0)
    print(f"{run_dir}: MLflow run {report.run_id or 'unknown'}: {counts} sent or passed over; {left} left", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
