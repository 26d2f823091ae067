"""Sends what is left of runs' journals to MLflow: `python launch/sync_tracking.py RUN_DIR [RUN_DIR ...]`.

The evaluations of a run are sent after it. For a run that ended while MLflow did not answer or with tracking switched
off, or, with --uri, for another MLflow.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.common.cli import is_command
from launch.common.tool_parsers import parse_sync_tracking as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.checkpoint.run_folder import evaluation_folders
from distill.tracking.sync import BusyError, sync


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    worst = 0
    for run_dir in (folder for given in args.run_dirs for folder in (given, *evaluation_folders(given))):
        try:
            if not args.timeout > 0:
                raise ValueError(f"--timeout {args.timeout:g} must be positive, in seconds")
            report = sync(run_dir, args.uri, args.experiment, args.timeout)
        except (ValueError, BusyError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            worst = 2
            continue
        counts = ", ".join(f"{n} {name}" for name, n in report.counts.items()) or "nothing"
        left = report.unsent + report.counts.get("refused", 0)
        print(
            f"{run_dir}: MLflow run {report.run_id or 'unknown'}: {counts} sent or passed over; {left} left", flush=True
        )
        worst = max(worst, 1 if left else 0)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
