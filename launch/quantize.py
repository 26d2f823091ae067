"""Writes a student's UNet and WriteNet with 8-bit weights, and how much each layer suffers from that.

python launch/quantize.py runs/demo --out runs/demo_int8.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from launch.common.cli import is_command, require_at_least, require_output_file, run_command
from launch.common.weights_parsers import parse_quantize as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

import torch

from anytext2.core.batch import collate
from anytext2.core.files import whole_file
from distill.diffusion.sampling import SamplingSpec, prepare_sampling
from distill.inference.loading import SamplingModel, data_sources, load_dataset, load_sampling_model, read_samples
from distill.inference.model import make_schedule
from distill.inference.variants.quantized import student_hash
from distill.quantization.files import write_quantized
from distill.quantization.int8 import bytes_of, network_tensors, quantize
from distill.quantization.sensitivity import LayerSensitivity, SensitivityProbe, layers_to_keep, measure_layers

SHOWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: quantize_student(args))


def quantize_student(args: argparse.Namespace) -> None:
    """Measures, keeps the worst layers, writes file and report, and prints what was gained and lost."""
    require_at_least(args, 1, "samples", "steps")
    require_output_file(args.out, "--out")
    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out {args.out}: name a .safetensors file")
    if not 0.0 <= args.keep < 1.0:
        raise ValueError(f"--keep {args.keep}: a share of the weights in [0, 1) is needed")
    steps = () if args.steps is None else (args.steps,)
    model = load_sampling_model(
        args.checkpoint, args.config, args.overrides, "fp32", args.device, steps, merge=True, keep_teacher=False
    )
    probe = make_probe(args, model)
    network = model.roles.model
    found = measure_layers(network, probe, _progress)
    kept = layers_to_keep(found, args.keep)
    half = _bytes_in_half(model)
    quantize(network, kept)
    eps, picture = probe.distances()
    size = _bytes_in_half(model)
    facts = {"student": student_hash(model), "checkpoint": str(model.checkpoint), "kept": kept}
    write_quantized(args.out, network, facts)
    report = {**facts, "eps": eps, "picture": picture, "bytes": size, "bytes_16_bit": half}
    report |= {"steps": probe.spec.steps, "samples": args.samples, "layers": [one.to_json() for one in found]}
    _write_report(args, report)
    _print(args, found, report)


def make_probe(args: argparse.Namespace, model: SamplingModel) -> SensitivityProbe:
    """Samples the first pictures of the data."""
    dataset, _ = load_dataset(data_sources(args.data, model), model.recipe)
    samples, _ = read_samples(dataset, range(min(args.samples, len(dataset))))
    batch = collate(samples).to(model.device).normalized()
    inputs = prepare_sampling(model.roles, batch, args.seed, None)
    spec = SamplingSpec("student", model.student_sampler, args.steps or model.default_steps)
    return SensitivityProbe(model.roles, inputs, spec, make_schedule(model.roles.model.cfg), model.sampler_options)


def _bytes_in_half(model: SamplingModel) -> int:
    """Bytes of UNet and WriteNet with all floats in 16 bits."""
    tensors = network_tensors(model.roles.model)
    with torch.device("meta"):
        return bytes_of({n: t.to("meta").half() if t.is_floating_point() else t for n, t in tensors.items()})


def _progress(done: int, total: int) -> None:
    if done % 20 == 0 or done == total:
        print(f"measured {done}/{total} layers", flush=True)


def _write_report(args: argparse.Namespace, report: dict[str, Any]) -> None:
    with whole_file(args.out.with_suffix(".json")) as file:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _print(args: argparse.Namespace, found: Sequence[LayerSensitivity], report: dict[str, Any]) -> None:
    kept = set(report["kept"])
    print(f"{'eps':>8} {'picture':>8}  layer (alone in 8 bits; picture: RMSE in grey levels)")
    for one in found[:SHOWN]:
        print(f"{one.eps:8.4f} {one.picture:8.3f}  {one.layer}{' (kept in 16 bits)' if one.layer in kept else ''}")
    print(f"all but {len(kept)} layers in 8 bits: eps {report['eps']:.4f}, picture {report['picture']:.2f}")
    size, half = report["bytes"], report["bytes_16_bit"]
    print(f"{args.out}: UNet and WriteNet {size / 1e6:.1f} MB, {size / half:.3f} of 16 bits ({half / 1e6:.1f} MB)")
    print(f"measure it: python launch/evaluate.py --run {args.checkpoint} --quantized {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
