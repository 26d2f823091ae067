"""Measures everything that needs a GPU: `make bench-gpu`.

Without the public recipe: `python -m launch.bench.gpu.bench_gpu`. The production step at the official size, 512 px, in
fp16: micro-batches, compilation, recomputation, beside the public recipe and the code of before, its kernels; sampling;
a model of three RTX 4090. Weights are drawn, unless model.weights names a file. Less than 8 minutes. What a section
measures is in runs/bench/gpu.json when it ends; a section that fails, or takes too long, is reported in one line, and
the others go on. With --tiny it runs the tiny model on any device, to show that it works. On cards of more than 24 GB
the allocator is limited to --cap-gib.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distill.runtime.device_settings import apply_device_settings
from launch.bench.gpu.card import GIB, describe_card, measure_rates
from launch.bench.gpu.other_sections import measure_accumulation, measure_sampling, project
from launch.bench.gpu.report import format_report
from launch.bench.gpu.sections import Section, run_sections
from launch.bench.gpu.step_sections import BOTH, Peers, StepSections
from launch.bench.gpu.steps import TINY, Plan
from launch.common.cli import run_command
from launch.common.command_help import command_parser

FOLDER, REPORTS = Path("runs/bench"), Path("docs/benchmarks")
SECONDS = 450.0
CAP_GIB = 22.5


def main(argv: Sequence[str] | None = None, peers: Peers | None = None) -> int:
    parser = command_parser(
        "Measure the official size on one GPU.",
        "python -m tests.peers.bench_gpu --sections eager before --report gpu.md",
    )
    add = parser.add_argument
    add("--tiny", "--dry-run", action="store_true", help="the tiny model, on the CPU where there is no GPU")
    add("--seconds", type=float, default=SECONDS, help="for all sections; default: %(default).0f")
    add("--cap-gib", type=float, default=CAP_GIB, help="GPU memory that may be allocated; default: %(default)s")
    add("--sections", nargs="+", default=[], metavar="NAME", help="only these, by their names in the output")
    add("--out", type=Path, default=FOLDER, metavar="DIR", help="for gpu.json; default: %(default)s")
    add("--report", type=Path, metavar="FILE", help=f"default: {REPORTS}/DATE-CARD.md, with --tiny DIR/gpu.md")
    add("overrides", nargs="*", metavar="key=value", help="recipe values")
    args = parser.parse_intermixed_args(argv)
    return run_command(lambda: bench(args, peers or {}))


def bench(args: argparse.Namespace, peers: Peers) -> None:
    """Measures, prints the tables, and writes gpu.json and the report. Raises ValueError without a GPU."""
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not args.tiny:
        raise ValueError("no GPU that CUDA can use is here; --tiny runs every section with the tiny model on the CPU")
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    apply_device_settings(device, tf32=True)
    cap = limit_memory(device, args.cap_gib)
    plan = TINY if args.tiny else Plan()
    plan = replace(plan, overrides=(*plan.overrides, *args.overrides))
    card = describe_card(device)
    results: dict[str, Any] = {"card": card, "cap_gib": cap, "tiny": args.tiny, "batch": plan.batch}
    rates: dict[str, Any] = {}
    steps = StepSections(plan, args.out, device, peers, rates)
    sections = make_sections(steps, rates, device)
    if unknown := set(args.sections) - {section.name for section in sections}:
        names = ", ".join(section.name for section in sections)
        raise ValueError(f"--sections {' '.join(sorted(unknown))}: one of {names}")
    chosen = [section for section in sections if not args.sections or section.name in args.sections]
    run_sections(chosen, results, args.out / "gpu.json", args.seconds, device, steps.reset)
    text = format_report(results)
    path = args.report or (args.out / "gpu.md" if args.tiny else REPORTS / report_name(card))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"\n{text}\nwrote {path.name} and gpu.json")


def limit_memory(device: torch.device, cap_gib: float) -> float | None:
    """Limits the allocator of a larger card; returns the limit in GiB."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    if total <= cap_gib * GIB:
        return round(total / GIB, 2)
    torch.cuda.set_per_process_memory_fraction(cap_gib * GIB / total, device)
    return cap_gib


def make_sections(steps: StepSections, rates: dict[str, Any], device: torch.device) -> list[Section]:
    """All sections, those first that matter most. rates: filled by the first one."""
    plan = steps.plan
    measured: dict[str, Any] = {}
    peers: dict[str, Any] = {}

    def card(values: dict[str, Any]) -> None:
        measure_rates(device, plan.side, plan.repeats, rates)
        values.update(rates)

    def eager(values: dict[str, Any]) -> None:
        steps.eager(values)
        measured["none"] = values[f"none, {plan.batch}"]

    def graphs(values: dict[str, Any]) -> None:
        steps.graphs(values)
        measured["graphs"] = values[f"graphs, {plan.batch}"]

    def blocks(values: dict[str, Any]) -> None:
        steps.blocks(values)
        measured.update({mode: values[f"{mode}, {plan.batch}"] for mode in ("blocks", BOTH)})

    def public_recipe(values: dict[str, Any]) -> None:
        steps.peers(values)
        peers.update(values)

    return [
        Section("card", 30, card),
        Section("eager", 150, eager),
        Section("graphs", 90, graphs, needs_cuda=True),
        Section("before", 40, steps.before),
        Section("public recipe", 90, public_recipe),
        Section("sampling", 70, lambda values: measure_sampling(steps.steps(), values)),
        Section("blocks", 180, blocks, needs_cuda=True),
        Section("compiled consistency", 120, lambda values: steps.compiled_peers(values, peers), needs_cuda=True),
        Section("recomputation", 40, steps.recomputation),
        Section("kernels", 10, steps.kernels, needs_cuda=True),
        Section("accumulation", 15, lambda values: measure_accumulation(steps.steps(), values), needs_cuda=True),
        Section("three RTX 4090", 5, lambda values: project(rates, measured, values), needs_cuda=True),
        Section("bfloat16", 60, steps.bfloat16),
        Section("more blocks", 240, steps.more_blocks, needs_cuda=True),
    ]


def report_name(card: dict[str, Any]) -> str:
    """DATE-CARD.md in lower case with dashes."""
    return f"{card['date']}-{re.sub('[^a-z0-9]+', '-', card['device'].lower()).strip('-')}.md"


if __name__ == "__main__":
    raise SystemExit(main())
