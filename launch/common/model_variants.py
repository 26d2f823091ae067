"""The options --quantized, --quantize-activations and --graphs of the commands that sample."""

from __future__ import annotations

import argparse

from distill.inference.loading import SamplingModel
from distill.inference.variants.captured import with_graphs
from distill.inference.variants.quantized import quantized_student


def with_variants(args: argparse.Namespace, model: SamplingModel) -> SamplingModel:
    """The model as the options ask for it. Raises ValueError for options that do not agree."""
    if args.quantized is not None:
        if args.merge or getattr(args, "add", None):
            other = "--merge" if args.merge else "--add"
            raise ValueError(f"--quantized {args.quantized}: holds a merged student; leave out {other}")
        model = quantized_student(model, args.quantized, args.quantize_activations)
    elif args.quantize_activations:
        raise ValueError("--quantize-activations: needs 8-bit weights; name their file with --quantized")
    return with_graphs(model) if args.graphs else model
