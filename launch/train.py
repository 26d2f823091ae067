"""Trains: `deepspeed launch/train.py --deepspeed ds_configs/zero2.json [--config RECIPE.yaml] [key=value ...]`.

Without --config the embedded default runs: the tiny AnyText2 on a synthetic dataset. Exit code 0: finished; 2: the
command, a file or a value is wrong (one line says which).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.config import EMBEDDED_DEFAULT, load_recipe
from distill.engine import choose_config, init_world, shutdown
from distill.setup import make_session
from distill.stream import UnreadableError
from distill.trainer import run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Distil AnyText2 into a few-step LoRA student, or train its teacher.")
    parser.add_argument("--deepspeed", type=Path, required=True, metavar="JSON", help="ds_configs/zero2.json")
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe; default: the embedded demo recipe")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # set by the launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in train.max_steps=100")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    main_rank = int(os.environ.get("RANK", "0")) == 0
    try:
        recipe = load_recipe(args.config or EMBEDDED_DEFAULT, args.overrides)
        if args.config is None and main_rank:
            print(f"No --config: running the embedded default, {EMBEDDED_DEFAULT.name}", flush=True)
        world = init_world(args.local_rank, recipe.train.threads)
        ds_config, line = choose_config(args.deepspeed, world, recipe.train.fp16_on_cpu)
        if main_rank:
            print(line, flush=True)
        session = make_session(recipe, ds_config, world)
        run(session)
        if session.tracker is not None:
            session.tracker.finish("FINISHED")
    except (ValueError, FloatingPointError) as error:
        if main_rank or isinstance(error, UnreadableError):  # every rank meets the others; one line is enough
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    finally:
        shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
