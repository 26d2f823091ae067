"""What the command line of launch/evaluate.py asks for: options, OCR engine, networks of CLIP score and FID."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import Any

import torch

from distill.evaluation import ENGINES, PROTOCOL
from distill.evaluation.benchmark_data import find_annotation_files
from distill.evaluation.evaluate import EvaluationConfig
from distill.evaluation.image_networks import ImageNetworks, ImageNetworksConfig
from distill.evaluation.ocr import Embedder, OcrEngine, OcrNotInstalled, RapidOcr
from distill.evaluation.ocr_engines import make_ocr_engine
from distill.inference.loading import SamplingModel, resolve_device
from launch.common.cli import require_at_least, require_output_folder


def check_options(args: argparse.Namespace) -> None:
    """Refuses what is wrong with the command itself, before anything is loaded. Raises ValueError in one line."""
    require_at_least(args, 1, "count")
    EvaluationConfig(**_given_options(args))
    resolve_device(args.device)
    if args.out is not None:
        require_output_folder(args.out, "--out")
    if missing := [path for path in args.data if not path.is_file()]:
        raise ValueError(f"--data {missing[0]}: no such file")
    if (args.protocol == PROTOCOL) != (args.benchmark is not None):
        raise ValueError(f"--protocol {PROTOCOL} and --benchmark DIR belong together")
    if args.prompts is not None:
        _check_prompt_options(args)
    elif len(args.ocr or ()) > 1:
        raise ValueError(f"--ocr: {len(args.ocr)} engines; several read free prompts only (--prompts)")
    if args.benchmark is not None:
        find_annotation_files(args.benchmark)
        for name in ("reference", "teacher_steps", "undistilled_steps", "guidance", "student_guidance"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: {PROTOCOL} says itself how pictures are sampled")


def _check_prompt_options(args: argparse.Namespace) -> None:
    """Refuses what does not go with --prompts. Raises ValueError in one line."""
    if not args.prompts.is_file():
        raise ValueError(f"--prompts {args.prompts}: no such file")
    for name in ("data", "benchmark", "reference", "undistilled_steps", "no_ocr", "clip_weights", "fid_reference"):
        if getattr(args, name):
            raise ValueError(
                f"--{name.replace('_', '-')}: free prompts are not measured with it; leave it out beside --prompts"
            )


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


def make_prompt_config(args: argparse.Namespace, model: SamplingModel) -> EvaluationConfig:
    """The options of an evaluation of prompts; by default the teacher in 20 steps, the student as trained."""
    return replace(
        make_config(args, model),
        teacher_steps=args.teacher_steps or [20],
        undistilled_steps=[],
        student_steps=(args.student_steps or [model.default_steps]) if model.has_student else [],
    )


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
    engine = next(iter(load_engines(args, model, threads).values()))
    if isinstance(engine, RapidOcr):
        return engine, engine
    try:
        return engine, RapidOcr(threads)
    except OcrNotInstalled:
        return engine, None


def load_engines(args: argparse.Namespace, model: SamplingModel, threads: int) -> dict[str, OcrEngine]:
    """The engines that read, by their names on the command line."""
    recognizer = model.roles.model.text_predictor
    names = dict.fromkeys(args.ocr or ENGINES[:1])
    return {name: make_ocr_engine(name, model.recipe, recognizer, threads) for name in names}
