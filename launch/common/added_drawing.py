"""Drawing with adapters beside the student's: the options --add and --add-scales of launch/infer.py."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from anytext2.core.files import whole_file
from distill.adapters.added import named_scale
from distill.inference.loading import SamplingModel
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.request import DrawingRequest, parse_font
from distill.viz.batch_pictures import image_grid
from launch.common.prompt_options import request_defaults

SCALES_PICTURE = "scales.png"


def requested_adapters(args: argparse.Namespace) -> tuple[list[tuple[Path, float]], list[float]]:
    """The adapters of --add with their scales, and the scales of --add-scales. Raises ValueError for wrong options."""
    added, scales = [named_scale(text) for text in args.add], args.add_scales or []
    if args.add_scales is None:
        return added, []
    if len(added) != 1 or not scales:
        raise ValueError("--add-scales: needs one --add, and its scales as in 0,0.5,1")
    if not all(map(math.isfinite, scales)):
        raise ValueError(f"--add-scales {','.join(map(str, scales))}: finite numbers are needed, as in 0,0.5,1")
    if args.prompt is None or args.merge:
        raise ValueError(f"--add-scales: draws one --prompt{', without --merge' if args.merge else ''}")
    return added, scales


def draw_scales(args: argparse.Namespace, model: SamplingModel, scales: Sequence[float]) -> None:
    """Draws the prompt at each scale from the same noise: a column for each scale, a row for each picture."""
    defaults = request_defaults(args, model.has_student)
    request = DrawingRequest(prompt=args.prompt, **{**defaults, "fonts": tuple(map(parse_font, args.fonts))})
    pipeline = AnyText2Pipeline(model)
    columns: list[Sequence[Image.Image]] = []
    for scale in scales:
        pipeline.set_scales(scale)
        columns.append(pipeline.draw(request).images)
        print(f"drew scale {scale:g}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    name = Path(args.add[0].rpartition(":")[0] or args.add[0]).stem
    rows = [list(row) for row in zip(*columns, strict=True)]
    with whole_file(args.out / SCALES_PICTURE) as file:
        image_grid(rows, [f"{name} {scale:g}" for scale in scales]).save(file)
    print(f"wrote {args.out / SCALES_PICTURE}")
