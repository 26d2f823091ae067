"""What launch/infer.py does with prompts: it builds the pipeline, draws, lets an OCR engine read, and prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.evaluation.ocr import OcrNotInstalled, exact_match
from distill.evaluation.ocr_engines import make_ocr_engine
from distill.inference.loading import SamplingModel
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.prompt_file import Judge, Prompt, PromptDrawing, read_prompts
from distill.inference.request import DrawingRequest, parse_font
from distill.inference.result import PlacedLine
from distill.inference.translate import make_translator
from launch.common.cli import USAGE_ERROR
from launch.common.prompt_options import request_defaults


def draw_prompts(args: argparse.Namespace, model: SamplingModel) -> int:
    """Draws --prompt or --prompts. Returns the exit code: 2 where some of many prompts could not be drawn."""
    defaults = request_defaults(args, model.has_student)
    translate = None if args.translate is None else make_translator(args.translate)
    pipeline = AnyText2Pipeline(model, translate=translate)
    drawing = PromptDrawing(pipeline, args.out, make_judge(args.ocr, model), circumstances=(args.ocr, args.translate))
    if args.prompts is None:
        request = DrawingRequest(prompt=args.prompt, **{**defaults, "fonts": tuple(map(parse_font, args.fonts))})
        args.out.mkdir(parents=True, exist_ok=True)
        print_entry(drawing.draw(Prompt("prompt", request)), args.out)
        return 0
    prompts = read_prompts(args.prompts, defaults)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = drawing.draw_all(prompts, str(args.prompts))
    print(f"drew {len(prompts) - failed} of {len(prompts)} prompts; {args.out / 'results.jsonl'}")
    return USAGE_ERROR if failed else 0


def print_entry(entry: dict[str, Any], out: Path) -> None:
    """Prints the files, what they cost, and what was read in them."""
    for picture in entry["pictures"]:
        label = f"{picture['role']} {picture['steps']}"
        print(f"{label}: {picture['unet_calls']} UNet calls, {picture['seconds']:.2f} s; {out / picture['file']}")
        for line in picture.get("ocr", ()):
            verdict = "right" if line["exact"] else f"reads as {line['read']!r}"
            print(f"  {line['text']!r}: {verdict}")


def make_judge(engine: str | None, model: SamplingModel) -> Judge | None:
    """What reads the pictures; None without an engine. Raises ValueError where the engine is not installed."""
    if engine is None:
        return None
    try:
        reader = make_ocr_engine(engine, model.recipe, model.roles.model.text_predictor, threads=1)
    except OcrNotInstalled as error:
        raise ValueError(f"--ocr {engine}: {str(error).removeprefix(f'--ocr {engine}: ')}") from error

    def judge(image: Image.Image, lines: Sequence[PlacedLine]) -> list[dict[str, Any]]:
        written = [line for line in lines if line.text.strip()]
        read = reader.recognize_lines(np.array(image), [line.polygon for line in written])
        return [
            {"text": line.text, "read": text, "exact": exact_match(text, line.text)}
            for line, text in zip(written, read, strict=True)
        ]

    return judge
