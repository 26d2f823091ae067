"""The options --quantized and --quantize-activations of the commands that sample."""

from __future__ import annotations

import argparse

from distill.inference.loading import SamplingModel
from distill.inference.variants.quantized import quantized_student


def with_quantized(args: argparse.Namespace, model: SamplingModel) -> SamplingModel:
    """The model with 8-bit weights, if the command asks for them. Raises ValueError for options that do not agree."""
    if args.quantized is None:
        if args.quantize_activations:
            raise ValueError("--quantize-activations: needs 8-bit weights; name their file with --quantized")
        return model
    if args.merge or getattr(args, "add", None):
        other = "--merge" if args.merge else "--add"
        raise ValueError(f"--quantized {args.quantized}: holds a merged student; leave out {other}")
    return quantized_student(model, args.quantized, args.quantize_activations)
