"""The command line of launch/evaluate.py, and what it asks for: options, OCR engine, networks of CLIP score and FID."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from distill.diffusion.samplers import SAMPLERS
from distill.evaluation.benchmark import PROTOCOL
from distill.evaluation.benchmark_data import find_annotation_files
from distill.evaluation.evaluate import EvaluationConfig
from distill.evaluation.image_networks import CLIP_MODEL, INCEPTION_FILE, ImageNetworks, ImageNetworksConfig
from distill.evaluation.ocr import Embedder, OcrEngine, OcrNotInstalled, RapidOcr
from distill.evaluation.ocr_engines import ENGINES, make_ocr_engine
from distill.inference.loading import SamplingModel, resolve_device
from launch.common.cli import add_model_options, add_sampling_options, int_list, require_at_least


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = EvaluationConfig()
    parser = argparse.ArgumentParser(description="Compare a few-step student with its teacher on held-out samples.")
    add_model_options(parser)
    add_sampling_options(parser, defaults.batch)
    add = parser.add_argument
    add("--data", type=Path, action="append", default=[], metavar="JSON", help="held-out annotations; default: drawn")
    add("--first", type=int, default=0, metavar="I", help="first sample of the dataset")
    add("--count", type=int, metavar="N", help="samples, default 128; prompts of each set of a benchmark, default all")
    for role in ("teacher", "undistilled", "student"):
        steps = ",".join(map(str, getattr(defaults, f"{role}_steps")))
        add(f"--{role}-steps", type=int_list, metavar="N,N", help=f"default: {steps}")
    add("--student-sampler", choices=SAMPLERS, help="default: its objective's own")
    add("--grid-rows", dest="shown", type=int, default=defaults.shown, metavar="N", help="pictures in grid.png")
    add("--shown", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # the option's old name
    add("--ocr", choices=ENGINES, default=ENGINES[0], help="the engine that reads; default: %(default)s")
    add("--no-ocr", action="store_true", help="leave the reading of lines out")
    add("--ocr-threads", type=int, default=defaults.ocr_threads, metavar="N")
    add("--clip-weights", type=Path, metavar="FILE", help="measure the CLIP score with these weights")
    add("--clip-model", default=CLIP_MODEL, metavar="NAME", help="as open_clip calls it; %(default)s")
    add("--fid-reference", type=Path, metavar="DIR", help="measure FID and KID to these pictures")
    add("--fid-weights", type=Path, metavar="FILE", help=INCEPTION_FILE)
    add("--protocol", choices=("held-out", PROTOCOL), default="held-out")
    add("--benchmark", type=Path, metavar="DIR", help=f"where {PROTOCOL} is unpacked")
    add("--reference", type=Path, metavar="FILE", help="take the first teacher row from it; made where it is not there")
    add("--out", type=Path, metavar="DIR", help="default: the run folder, else runs/evaluate")
    return parser.parse_intermixed_args(argv)


def check_options(args: argparse.Namespace) -> None:
    """Refuses what is wrong with the command itself, before anything is loaded. Raises ValueError in one line."""
    require_at_least(args, 1, "count")
    EvaluationConfig(**_given_options(args))
    if missing := [path for path in args.data if not path.is_file()]:
        raise ValueError(f"--data {missing[0]}: no such file")
    if (args.protocol == PROTOCOL) != (args.benchmark is not None):
        raise ValueError(f"--protocol {PROTOCOL} and --benchmark DIR belong together")
    if args.benchmark is not None:
        find_annotation_files(args.benchmark)
        for name in ("reference", "teacher_steps", "undistilled_steps", "guidance", "student_guidance"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: {PROTOCOL} says itself how pictures are sampled")


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of EvaluationConfig that the command has values for."""
    names = [field.name for field in fields(EvaluationConfig)]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def make_config(args: argparse.Namespace, model: SamplingModel) -> EvaluationConfig:
    """The evaluation's options; without an adapter there is no student to measure."""
    options = _given_options(args)
    options.setdefault("guidance", model.guidance)
    options.setdefault("student_sampler", model.student_sampler)
    if not model.has_student:
        options["student_steps"] = []
    elif args.student_steps is None:
        options["student_steps"] = model.recipe.student.supported_steps(EvaluationConfig().student_steps)
    return EvaluationConfig(**options)


def load_image_networks(args: argparse.Namespace) -> ImageNetworks | None:
    """The networks that are asked for, before anything larger is loaded. Raises ValueError in one line."""
    config = ImageNetworksConfig(args.clip_weights, args.clip_model, args.fid_reference, args.fid_weights)
    if not config.any:
        return None
    networks = ImageNetworks(config, torch.device(resolve_device(args.device)))
    if args.benchmark is None:  # its sets may have references of their own
        networks.reference_features()
    return networks


def load_ocr(args: argparse.Namespace, model: SamplingModel, threads: int) -> tuple[OcrEngine | None, Embedder | None]:
    """The engine that reads, and the one of the text distance: always RapidOCR, because nothing is trained on it."""
    if args.no_ocr:
        return None, None
    engine = make_ocr_engine(args.ocr, model.recipe, model.roles.model.text_predictor, threads)
    if isinstance(engine, RapidOcr):
        return engine, engine
    try:
        return engine, RapidOcr(threads)
    except OcrNotInstalled:
        return engine, None
