"""Shows the model's inputs: `python launch/show_dataset.py data.json --out runs/sheet [--count 24] [key=value ...]`.

Writes `index.html`, which works without a server, with all inputs of some samples, spread evenly over the data. Also
writes `contact_sheet.png`, the same in one picture, and the pictures to `images/`. Exit code 0: done; 2: the command, a
file or a value is wrong, or no picture can be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.common.cli import is_command, require_at_least, require_output_folder, run_command
from launch.common.parsers import parse_show_dataset as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.inference.loading import load_dataset, read_samples
from distill.viz.contact_sheet import OVERVIEW, evenly_spaced_indices, write_html_page
from launch.common.data_options import resolve_data


def show(args: argparse.Namespace) -> int:
    """Writes the page and prints its path; returns 0. Raises ValueError in one line."""
    require_at_least(args, 1, "count")
    require_output_folder(args.out, "--out")
    size = [] if args.resolution is None else [f"resolution={args.resolution}"]
    sources, recipe = resolve_data(args, size)
    dataset, report = load_dataset(sources, recipe)
    if not len(dataset):
        raise ValueError(f"{', '.join(map(str, sources))}: no picture to show ({report})")
    samples, skipped = read_samples(dataset, evenly_spaced_indices(len(dataset), args.count))
    unreadable = "".join(f"; {reason}: {count}" for reason, count in sorted(skipped.items()))
    facts = [
        f"{', '.join(map(str, sources))}: {report}",
        f"{len(samples)} samples at {recipe.data.options.resolution} px, spread evenly over the data{unreadable}",
    ]
    page = write_html_page(samples, args.out, f"What goes in: {len(samples)} samples", facts)
    print("\n".join(facts))
    print(f"wrote {page} and {args.out / OVERVIEW}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: show(args))


if __name__ == "__main__":
    raise SystemExit(main())
