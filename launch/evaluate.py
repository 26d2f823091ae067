"""Measures: `python launch/evaluate.py --checkpoint runs/demo [--data heldout/data.json] [--count 128]`.

Prints a table of teacher, undistilled model and student at several numbers of steps (distance to the teacher's 50
guided steps from the same noise, lines read by an OCR engine, UNet calls, seconds) and writes `summary.json`,
`grid.png` and `sheet.png`. With `--protocol anytext-benchmark` it samples and scores the published benchmark instead,
with `--prompts FILE.jsonl` free prompts: their table says how many lines are read as they were asked for.
Exit code 0: done; 2: the command, a file or a value is wrong, or some prompts cannot be drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.common.cli import USAGE_ERROR, is_command, run_command
from launch.common.parsers import parse_evaluate as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

import torch

from anytext2.core.files import whole_file
from distill.adapters.merging import MergedRoles
from distill.checkpoint.formats import TRAINER_STATE, read_trainer_state
from distill.checkpoint.store import write_text_atomically
from distill.evaluation import PROTOCOL
from distill.evaluation.benchmark import Benchmark, benchmark_rows, format_benchmark
from distill.evaluation.benchmark_data import SEED, find_annotation_files, load_prompts
from distill.evaluation.evaluate import evaluate, evaluation_mode
from distill.evaluation.image_networks import UNMEASURED_NETWORKS_NOTE, ImageNetworks, ImageNetworkScores
from distill.evaluation.ocr import OcrNotInstalled, RapidOcr
from distill.evaluation.ocr_sheet import reading_sheet
from distill.evaluation.prompts.evaluate import evaluate_prompts
from distill.evaluation.prompts.scores import format_rows
from distill.evaluation.score_table import format_scores
from distill.inference.loading import (
    SamplingModel,
    held_out_sources,
    load_dataset,
    load_sampling_model,
    read_samples,
)
from distill.inference.model import make_schedule
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.prompt_file import read_prompts
from distill.inference.variants.quantized import QuantizedRoles
from distill.tracking.evaluation_record import record_evaluation
from distill.viz.grids import SampleImages, sample_grid
from launch.common.data_options import recipe_line
from launch.common.evaluation_options import (
    check_options,
    load_engines,
    load_image_networks,
    load_ocr,
    make_config,
    make_prompt_config,
)
from launch.common.model_variants import with_variants

DEFAULT_COUNT = 128
BENCHMARK_METRICS = ("sen_acc", "ned", "clip_score", "fid", "kid")
RUN_KEYS = ("mlflow_run_id", "ranks", "precision", "effective_batch", "optimizer_bytes_per_rank")
"""Facts of the training run that summary.json repeats."""


def evaluate_held_out(args: argparse.Namespace, model: SamplingModel, networks: ImageNetworks | None) -> None:
    """Evaluates on held-out pictures, prints the table, and writes and records the results."""
    config = make_config(args, model)
    engine, embedder = load_ocr(args, model, config.ocr_threads)
    count = DEFAULT_COUNT if args.count is None else args.count
    fault = model.recipe.model.fault_injection
    if args.reference is not None and fault and not args.reference.is_file():
        raise ValueError(
            f"--reference {args.reference}: model.fault_injection={fault} is no teacher to compare with; make the file "
            "with a sound model first"
        )
    out = args.out or model.run_dir or Path("runs/evaluate")
    if not args.data:
        _require_index(args.first, count)  # before any picture is drawn
    sources = held_out_sources(args.data, model, count, out / "held_out")
    dataset, report = load_dataset(sources, model.recipe)
    _require_index(args.first, len(dataset))
    samples, skipped = read_samples(dataset, range(args.first, min(args.first + count, len(dataset))))
    print(report)
    print(f"measuring {len(samples)} samples; {sum(skipped.values())} more cannot be read {dict(skipped)}", flush=True)
    evaluation = evaluate(
        model.roles,
        samples,
        make_schedule(model.roles.model.cfg),
        config,
        engine,
        model.sampler_options,
        _progress("pictures"),
        embedder,
        None if networks is None else ImageNetworkScores(networks),
        args.reference,
    )
    columns = [(spec.key, spec.label) for spec in config.rows()]
    grid = _write_grid(out, evaluation.examples, columns)
    summary = {
        "data": [str(source) for source in sources],
        "unreadable_samples": dict(skipped),
        "grid": str(grid),
        "text_distance_engine": embedder.name if isinstance(embedder, RapidOcr) else None,
        **evaluation.to_json(),
    }
    files = [*_write_results(model, out, summary, evaluation.examples, columns), grid]
    print(format_scores(evaluation.rows, evaluation.originals, evaluation.reconstructions))
    for pair in evaluation.comparisons:
        low, high = pair.rmse_difference_95
        print(
            f"{pair.row} against {pair.other}: latent RMSE {pair.rmse_difference:+.4f} (95 % {low:+.4f} to "
            f"{high:+.4f}), nearer to the teacher in {pair.wins:.0%} of the pictures"
        )
    _finish(model, networks, files, evaluation.metrics(), {"evaluation": asdict(config), "data": summary["data"]})


def _require_index(first: int, count: int, unit: str = "samples") -> None:
    if not 0 <= first < count:
        where = "the dataset" if unit == "samples" else "the file"
        raise ValueError(f"--first {first}: {where} has {count} {unit}, 0 to {count - 1}")


def evaluate_benchmark(args: argparse.Namespace, model: SamplingModel, networks: ImageNetworks | None) -> None:
    """Samples and scores AnyText-benchmark, prints the table, and writes and records the results."""
    config = make_config(args, model)
    engine, _ = load_ocr(args, model, config.ocr_threads)
    steps = (args.student_steps or [model.default_steps]) if model.has_student else []
    rows = benchmark_rows(steps, config.student_sampler, config.gamma)
    out = args.out or model.run_dir or Path("runs/evaluate")
    benchmark = Benchmark(
        model.roles,
        make_schedule(model.roles.model.cfg),
        rows,
        out / PROTOCOL,
        engine,
        networks,
        model.sampler_options,
        config.negative_prompt,
        config.batch,
        min(config.shown, 4),
    )
    sets, skipped = {}, Counter[str]()
    for name, file in find_annotation_files(args.benchmark).items():
        dataset = load_prompts(file, model.recipe, args.first, args.count)
        samples, unreadable = read_samples(dataset, range(len(dataset)))
        skipped += unreadable
        subfolder = file.parent.name if file.stem == "test1k" else f"{file.parent.name}_long"
        print(f"{name}: {len(samples)} prompts of {file}; {sum(unreadable.values())} more cannot be read", flush=True)
        with evaluation_mode(model.roles.model):
            sets[name] = benchmark.run(samples, subfolder, config.resamples, _progress("prompts"))
    plain = {name: [row.to_json() for row in rows] for name, rows in sets.items()}
    summary = {
        "protocol": PROTOCOL,
        "data": [str(args.benchmark)],
        "unreadable_samples": dict(skipped),
        "seed": SEED,
        "negative_prompt": config.negative_prompt,
        "ocr_engine": engine.name if engine else None,
        "sets": plain,
    }
    files = _write_results(model, out, summary, benchmark.examples, [(spec.key, spec.label) for spec in rows])
    print(format_benchmark(sets))
    metrics = {
        f"{name}/{row['key']}/{metric}": row[metric]
        for name, rows_of_set in plain.items()
        for row in rows_of_set
        for metric in BENCHMARK_METRICS
        if row[metric] is not None
    }
    params = {"protocol": PROTOCOL, "benchmark": str(args.benchmark), "count": args.count}
    _finish(model, networks, files, metrics, params)


def evaluate_free_prompts(args: argparse.Namespace, model: SamplingModel) -> int:
    """Draws the prompts of a file, prints the table of what is read, and writes and records the results.

    Returns the exit code.
    """
    config = make_prompt_config(args, model)
    engines = load_engines(args, model, config.ocr_threads)
    prompts = read_prompts(args.prompts, {"seed": args.seed, "negative_prompt": args.negative_prompt})
    _require_index(args.first, len(prompts), "prompts")
    prompts = prompts[args.first :][: args.count]
    out = args.out or (model.run_dir or Path("runs/evaluate")) / "prompts"
    pipeline = AnyText2Pipeline(model)
    evaluation = evaluate_prompts(
        pipeline, prompts, config.rows(), engines, config.shown, config.resamples, config.seed, _progress("prompts")
    )
    columns = [(spec.key, spec.label) for spec in config.rows()]
    grid = _write_grid(out, evaluation.examples, columns)
    summary = {
        "data": [str(args.prompts)],
        "seed": config.seed,
        "negative_prompt": config.negative_prompt,
        "ocr_engines": {name: engine.name for name, engine in engines.items()},
        **evaluation.to_json(),
    }
    files = [*_write_results(model, out, summary, evaluation.examples, columns), grid]
    print(format_rows(evaluation.rows))
    if evaluation.refused:
        print(f"{len(evaluation.refused)} of {len(prompts)} prompts cannot be drawn and are not in the table")
    print(f"wrote {', '.join(str(file) for file in files)}", flush=True)
    _record(model, files, evaluation.metrics(), {"evaluation": asdict(config), "prompts": str(args.prompts)})
    return USAGE_ERROR if evaluation.refused else 0


def _progress(unit: str) -> Callable[[int, int], None]:
    began = time.perf_counter()
    return lambda done, total: print(
        f"evaluated {done}/{total} {unit}, {time.perf_counter() - began:.0f} s", flush=True
    )


def _write_grid(out: Path, examples: Sequence[SampleImages], columns: Sequence[tuple[str, str]]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "grid.png") as file:
        sample_grid(examples, columns).save(file)
    return out / "grid.png"


def _write_results(
    model: SamplingModel,
    out: Path,
    results: Mapping[str, Any],
    examples: Sequence[SampleImages],
    columns: Sequence[tuple[str, str]],
) -> list[Path]:
    """Writes summary.json and sheet.png into `out`; returns their paths.

    results: for summary.json, after the facts of command and checkpoint. columns: of the sheet, (row key, label).
    """
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "sheet.png") as file:
        reading_sheet(examples, columns).save(file)
    facts = model.run_info()
    summary = {
        "command": " ".join(sys.argv),
        "checkpoint": str(model.checkpoint) if model.checkpoint else None,
        **{key: facts.get(key) for key in RUN_KEYS},
        "sampling": {
            "device": model.device.type,
            "precision": model.precision,
            "merged": isinstance(model.roles, MergedRoles),
            "quantized": isinstance(model.roles, QuantizedRoles),
            "threads": torch.get_num_threads(),
        },
        **results,
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(out / "summary.json", text)
    return [out / "summary.json", out / "sheet.png"]


def _finish(
    model: SamplingModel,
    networks: ImageNetworks | None,
    files: Sequence[Path],
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
) -> None:
    """Says what was written, and records it."""
    if networks is None:
        print(UNMEASURED_NETWORKS_NOTE)
    print(f"wrote {', '.join(str(file) for file in files)}", flush=True)
    _record(model, files, metrics, params)


def _record(
    model: SamplingModel, files: Sequence[Path], metrics: Mapping[str, float], params: Mapping[str, Any]
) -> None:
    """Records an evaluation below the MLflow run of the training, if the checkpoint has one."""
    if model.run_dir is None or model.checkpoint is None or not model.recipe.tracking.enabled:
        return
    if not (model.checkpoint / TRAINER_STATE).is_file():  # an adapter alone, beside a recipe
        return
    step = read_trainer_state(model.checkpoint).step
    described = {"checkpoint": str(model.checkpoint), "command": " ".join(sys.argv), **params}
    record_evaluation(model.run_dir, model.recipe.tracking, model.checkpoint, step, metrics, described, files)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code."""
    check_options(args)
    networks = load_image_networks(args)
    steps, sampler = args.student_steps or (), args.student_sampler or ""
    model = load_sampling_model(
        args.checkpoint, args.config, args.overrides, args.precision, args.device, steps, sampler, args.merge
    )
    model = with_variants(args, model)
    print(recipe_line(model.recipe, model.recipe_file), flush=True)
    if args.prompts is not None:
        return evaluate_free_prompts(args, model)
    (evaluate_benchmark if args.protocol == PROTOCOL else evaluate_held_out)(args, model, networks)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: run(args), (ValueError, OSError, OcrNotInstalled))


if __name__ == "__main__":
    raise SystemExit(main())
