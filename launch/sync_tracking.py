"""Sends what is left of runs' journals to MLflow: `python launch/sync_tracking.py RUN_DIR [RUN_DIR ...]`.

The evaluations of a run are sent after it. For a run that ended while MLflow did not answer or with tracking switched
off, or, with --uri, for another MLflow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launch.common.cli import is_command, run_command
from launch.common.tool_parsers import parse_sync_tracking as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.checkpoint.run_folder import evaluation_folders
from distill.tracking.sync import BusyError, sync


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
