"""Writes a synthetic dataset in the AnyWord format: `python launch/make_dataset.py --out DIR --count 1000`."""

from __future__ import annotations

import argparse
import sys
import time

from anytext2.glyphs.fonts import DEFAULT_FONT_TABLE
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from launch.common.cli import run_command


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return run_command(lambda: draw(args))


def draw(args: argparse.Namespace) -> None:
    """Draws the pictures and prints how many. Raises ValueError for impossible options."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for data.json and imgs/")
    parser.add_argument("--count", type=int, required=True, help="number of pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels")
    parser.add_argument("--workers", type=int, default=1, help="number of processes; it does not change the pictures")
    parser.add_argument(
        "--first-index", type=int, default=0, help="index of the first picture, for another part of the same dataset"
    )
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    parser.add_argument("--fonts", default=str(DEFAULT_FONT_TABLE), help="font table (YAML)")
    parser.add_argument(
        "--default-font",
        type=float,
        default=SyntheticConfig.default_font,
        metavar="FRACTION",
        help="fraction of the lines drawn in the first font of their language, the one of the glyph pages",
    )
    for name, what in (("outline", "a rim"), ("shadow", "a shade")):
        default = getattr(SyntheticConfig, name)
        described = f"of the pictures, whose letters have {what}; default {default}"
        parser.add_argument(f"--{name}", type=float, default=default, metavar="FRACTION", help=described)
    for name in ("latin", "chinese"):
        least = getattr(SyntheticConfig, f"{name}_height")[0]
        described = f"of the smallest {name.capitalize()} lines; default {least}"
        parser.add_argument(f"--{name}-height", type=int, default=least, metavar="PIXELS", help=described)
    return parser


if __name__ == "__main__":
    sys.exit(main())
