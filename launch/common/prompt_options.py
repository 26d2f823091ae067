"""The options of prompts and editing of launch/infer.py. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.evaluation import ENGINES

_FIELDS = ("boxes", "polygons", "colors", "order", "revise", "max_lines", "height", "width", "strength", "attnx_scale")


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Adds what only prompts have. Each option names the field of `DrawingRequest` that it is for."""
    group = parser.add_argument_group("prompts", "draw your own words instead of samples of a dataset")
    add = group.add_argument
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help='as in \'a shop sign that reads "OPEN" "24 HOURS"\'')
    source.add_argument("--prompts", type=Path, metavar="JSONL", help="many: a JSON object with a prompt on each line")
    add("--edit", dest="image", type=Path, metavar="PICTURE", help="write into this picture, in --mask or --box places")
    add("--mask", type=Path, metavar="PICTURE", help="places as shapes on a background, one text each")
    add(
        "--order",
        default="top-down",
        choices=("top-down", "left-right"),
        help="of a mask's shapes; default: %(default)s",
    )
    add("--box", dest="boxes", action="append", default=[], metavar="L,T,R,B", help="a place; one --box for each text")
    add("--polygon", dest="polygons", action="append", default=[], metavar="X,Y X,Y ...", help="a place with corners")
    add("--revise", action="store_true", help="move places so that their texts fit")
    add(
        "--font",
        dest="fonts",
        action="append",
        default=[],
        metavar="NAME",
        help="for all texts or one for each: a font "
        "of fonts/fonts.yaml, a font file, or PICTURE@L,T,R,B for letters to imitate",
    )
    add("--color", dest="colors", action="append", default=[], metavar="COLOR", help="as --font: a name or #RRGGBB")
    add("--height", type=int, metavar="PIXELS", help="default: as in training")
    add("--width", type=int, metavar="PIXELS", help="default: as in training")
    add("--strength", type=float, default=1.0, help="of the control by text and places, 0 to 2; default: %(default)s")
    add("--attnx-scale", type=float, default=1.0, help="of the text attention, 0 to 2; default: %(default)s")
    add("--max-lines", type=int, default=5, metavar="N", help="texts of a prompt; default: %(default)s")
    add("--translate", metavar="HOW", help="prompts to English: argos, marian:FOLDER or command:PROGRAM")
    add("--ocr", choices=ENGINES, help="let this engine read what was written")


def request_defaults(args: argparse.Namespace, has_student: bool) -> dict[str, Any]:
    """The settings of `DrawingRequest` that the command line gives to all prompts. Fonts are still texts.

    Raises ValueError for an option that does not go with prompts.
    """
    if args.data or args.sample_index:
        name = "--data" if args.data else "--sample-index"
        raise ValueError(f"{name}: belongs to samples of a dataset; leave it out beside --prompt")
    steps = args.steps or [None]
    if len(steps) > 1:
        raise ValueError(f"--steps: {len(steps)} numbers; give one with prompts, or one in each line of --prompts")
    defaults: dict[str, Any] = {name: getattr(args, name) for name in _FIELDS}
    defaults |= {
        "negative_prompt": args.negative_prompt,
        "num_inference_steps": steps[0],
        "any_steps": args.any_steps,
        "sampler": args.sampler or "",
        "guidance_scale": args.student_guidance if has_student else args.guidance,
        "gamma": args.gamma,
        "seed": args.seed,
        "num_images_per_prompt": args.count,
        "teacher": args.teacher,
        "teacher_steps": args.teacher_steps or 20,
        "teacher_guidance": args.guidance if has_student else None,
        "image": args.image,
        "mask": args.mask,
    }
    return defaults | {"fonts": args.fonts}
