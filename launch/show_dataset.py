"""Shows the model's inputs: `python launch/show_dataset.py data.json --out runs/sheet [--count 24] [key=value ...]`.

Writes `index.html`, which works without a server, with all inputs of some samples, spread evenly over the data. Also
writes `contact_sheet.png`, the same in one picture, and the pictures to `images/`. Exit code 0: done; 2: the command, a
file or a value is wrong, or no picture can be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.inference.loading import load_dataset, read_samples
from distill.viz.contact_sheet import OVERVIEW, evenly_spaced_indices, write_html_page
from launch.common.cli import require_at_least, run_command
from launch.common.data_options import add_data_options, resolve_data


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show samples of a dataset as the model gets them.")
    add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for index.html and its pictures")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="samples; fewer where the data has fewer")
    parser.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="side of a sample; default: the recipe's, else 512"
    )
    return parser.parse_intermixed_args(argv)


def show(args: argparse.Namespace) -> int:
    """Writes the page and prints its path; returns 0. Raises ValueError in one line."""
    require_at_least(args, 1, "count")
    size = [] if args.resolution is None else [f"resolution={args.resolution}"]
    sources, recipe = resolve_data([*args.items, *size], args.recipe)
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
