"""Checks a dataset: `python launch/check_dataset.py data.json [...] [--workers 4] [key=value ...]`.

Decodes every picture, makes the sample and audits it as a run audits its first batch. No network is needed. Prints a
table with the first example of every fault, and writes it as JSON. Exit code 0: usable; 1: not usable (the last line
says which file and why); 2: the command, a file name or a value is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from launch.common.cli import is_command, require_at_least, require_output_file, run_command
from launch.common.parsers import parse_check_dataset as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.checkpoint.store import write_text_atomically
from distill.checks.dataset_check import check_source
from distill.checks.dataset_report import SourceCheck, format_report, reasons_unusable
from launch.common.data_options import resolve_data

FOLDER = Path("runs/check")


def check(args: argparse.Namespace) -> int:
    """Prints the table and writes the JSON; returns 0 where the data is usable. Raises ValueError in one line."""
    require_at_least(args, 0, "workers")
    require_at_least(args, 1, "limit")
    if args.out is not None:
        require_output_file(args.out, "--out")
    sources, recipe = resolve_data(args)
    options = recipe.data.options
    max_unreadable = recipe.data.max_unreadable if args.max_unreadable is None else args.max_unreadable
    for name, share in (("max-unreadable", max_unreadable), ("max-findings", args.max_findings)):
        if not 0 <= share <= 1:
            raise ValueError(f"--{name} {share}: must be a share, in [0, 1]")
    checks: list[SourceCheck] = []
    for source in sources:
        progress = progress_on_stderr(source)
        shares = (recipe.data.max_faulty, recipe.data.max_faulty_lines)
        found = check_source(source, options, recipe.seed, args.workers, args.limit, *shares, progress)
        print(format_report(found), flush=True)
        checks.append(found)
    why_not = [reason for found in checks for reason in reasons_unusable(found, max_unreadable, args.max_findings)]
    report = {
        "usable": not why_not,
        "why_not": why_not,
        "limit": args.limit,
        "seed": recipe.seed,
        "options": asdict(options),
        "sources": [asdict(found) for found in checks],
    }
    out = args.out or FOLDER / f"{sources[0].stem}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(out, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"wrote {out}")
    if why_not:
        print(f"not usable: {'; '.join(why_not)}")
        return 1
    print(f"usable: {sum(found.readable for found in checks)} samples are sound")
    return 0


def progress_on_stderr(source: Path, every: float = 2.0) -> Callable[[int, int], None]:
    """A callback (done, total) that prints a line at most every `every` seconds; on a terminal it is overwritten."""
    began = last = time.perf_counter()
    end = "\r" if sys.stderr.isatty() else "\n"

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= every or done == total:
            last = now
            line = f"{source.name}: checked {done}/{total} pictures, {now - began:.0f} s"
            print(line, end="\n" if done == total else end, file=sys.stderr, flush=True)

    return progress


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: check(args))


if __name__ == "__main__":
    raise SystemExit(main())
