"""Measures: `python launch/evaluate.py --checkpoint runs/demo [--data heldout/data.json] [--count 128]`.

Prints a table of teacher, undistilled model and student at several numbers of steps (distance to the teacher's 50
guided steps from the same noise, lines read by an OCR engine, UNet calls, seconds) and writes `summary.json`,
`grid.png` and `sheet.png`. With `--protocol anytext-benchmark` it draws and judges the published benchmark instead.
Exit code 0: done; 2: the command, a file or a value is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from distill.checkpoint.formats import TRAINER_STATE, read_trainer_state
from distill.checkpoint.store import write_text_atomically
from distill.diffusion.samplers import SAMPLERS
from distill.evaluation.benchmark import PROTOCOL, Benchmark, benchmark_rows, benchmark_table
from distill.evaluation.benchmark_data import SEED, find_sets, open_set
from distill.evaluation.evaluate import EvaluationConfig, evaluate, evaluating
from distill.evaluation.image_networks import CLIP_MODEL, HOW_TO, INCEPTION_FILE, NetworkKit, NetworkOptions, Networks
from distill.evaluation.ocr import Embedder, OcrEngine, OcrNotInstalled, RapidOcr
from distill.evaluation.ocr_engines import ENGINES, make_ocr_engine
from distill.evaluation.reading_sheet import verdict_sheet
from distill.evaluation.score_table import table
from distill.inference.loading import (
    SamplingModel,
    held_out_sources,
    load_dataset,
    load_sampling_model,
    pick_device,
    read_samples,
)
from distill.inference.model import make_schedule
from distill.tracking.evaluation_record import record_evaluation, row_metrics
from distill.viz.grids import GridRow, picture_grid

RUN_KEYS = ("mlflow_run_id", "ranks", "precision", "effective_batch", "optimizer_bytes_per_rank")
DEFAULT_COUNT = 128


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = EvaluationConfig()
    parser = argparse.ArgumentParser(description="Compare a few-step student with its teacher on held-out samples.")
    parser.add_argument(
        "--checkpoint", "--run", type=Path, metavar="DIR", help="checkpoint-N, run folder or PEFT adapter"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="JSON", help="held-out annotations; default: drawn"
    )
    parser.add_argument("--first", type=int, default=0, metavar="I", help="first sample of the dataset")
    parser.add_argument(
        "--count", type=int, metavar="N", help="samples, default 128; prompts of each set of a benchmark, default all"
    )
    parser.add_argument("--guidance", type=float, help="of the teacher; 1: none; default: as distilled")
    parser.add_argument(
        "--student-guidance", type=float, metavar="G", help="more guidance of the student; default 1: none"
    )
    parser.add_argument(
        "--negative-prompt", default=defaults.negative_prompt, metavar="TEXT", help="what guidance leads away from"
    )
    for role in ("teacher", "undistilled", "student"):
        steps = getattr(defaults, f"{role}_steps")
        parser.add_argument(
            f"--{role}-steps", type=_numbers, metavar="N,N", help=f"default: {','.join(map(str, steps))}"
        )
    parser.add_argument("--student-sampler", choices=SAMPLERS, help="default: its objective's own")
    parser.add_argument("--gamma", type=float, default=defaults.gamma, help="of the student's trajectory sampler")
    parser.add_argument("--batch", type=int, default=defaults.batch, metavar="N", help="pictures drawn together")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the noise")
    parser.add_argument(
        "--grid-rows", dest="shown", type=int, default=defaults.shown, metavar="N", help="pictures in grid.png"
    )
    # The option's old name.
    parser.add_argument("--shown", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--ocr", choices=ENGINES, default=ENGINES[0], help="the engine that reads; default: %(default)s"
    )
    parser.add_argument("--no-ocr", action="store_true", help="leave the reading of lines out")
    parser.add_argument("--ocr-threads", type=int, default=defaults.ocr_threads, metavar="N")
    parser.add_argument("--clip-weights", type=Path, metavar="FILE", help="measure the CLIP score with these weights")
    parser.add_argument("--clip-model", default=CLIP_MODEL, metavar="NAME", help="as open_clip calls it; %(default)s")
    parser.add_argument("--fid-reference", type=Path, metavar="DIR", help="measure FID and KID to these pictures")
    parser.add_argument("--fid-weights", type=Path, metavar="FILE", help=INCEPTION_FILE)
    parser.add_argument("--protocol", choices=("held-out", PROTOCOL), default="held-out")
    parser.add_argument("--benchmark", type=Path, metavar="DIR", help=f"where {PROTOCOL} is unpacked")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="take the first teacher row from it; made where it is not there"
    )
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the run folder, else runs/evaluate")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")
    return parser.parse_intermixed_args(argv)


def section(args: argparse.Namespace, opened: SamplingModel) -> EvaluationConfig:
    """The evaluation's options; without an adapter there is no student to measure."""
    given = _given(args)
    given.setdefault("guidance", opened.guidance)
    given.setdefault("student_sampler", opened.student_sampler)
    if not opened.has_student:
        given["student_steps"] = []
    elif args.student_steps is None:
        given["student_steps"] = opened.recipe.student.supported_steps(EvaluationConfig().student_steps)
    return EvaluationConfig(**given)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The evaluation's options that the command names."""
    names = [field.name for field in fields(EvaluationConfig)]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def open_networks(args: argparse.Namespace) -> NetworkKit | None:
    """The networks that are asked for, before anything larger is loaded. Raises ValueError in one line."""
    options = NetworkOptions(args.clip_weights, args.clip_model, args.fid_reference, args.fid_weights)
    if not options.any:
        return None
    kit = NetworkKit(options, torch.device(pick_device(args.device)))
    if args.benchmark is None:  # whose sets may have references of their own
        kit.reference()
    return kit


def open_engines(
    args: argparse.Namespace, opened: SamplingModel, threads: int
) -> tuple[OcrEngine | None, Embedder | None]:
    """What reads the lines, and what compares them as distributions: always the engine that nothing is trained on."""
    if args.no_ocr:
        return None, None
    reader = make_ocr_engine(args.ocr, opened.recipe, opened.roles.model.text_predictor, threads)
    if isinstance(reader, RapidOcr):
        return reader, reader
    try:
        return reader, RapidOcr(threads)
    except OcrNotInstalled:
        return reader, None


def measure(args: argparse.Namespace, opened: SamplingModel, kit: NetworkKit | None) -> None:
    """Evaluates on held-out pictures, prints the table, and writes and records the results."""
    options = section(args, opened)
    reader, embedder = open_engines(args, opened, options.ocr_threads)
    count = DEFAULT_COUNT if args.count is None else args.count
    out = args.out or opened.run_dir or Path("runs/evaluate")
    sources = held_out_sources(args.data, opened, count, out / "held_out")
    dataset, report = load_dataset(sources, opened.recipe)
    if not 0 <= args.first < len(dataset):
        raise ValueError(f"--first {args.first}: the dataset has {len(dataset)} samples, 0 to {len(dataset) - 1}")
    samples, skipped = read_samples(dataset, range(args.first, min(args.first + count, len(dataset))))
    print(report)
    print(f"measuring {len(samples)} samples; {sum(skipped.values())} more cannot be read {dict(skipped)}", flush=True)
    fault = opened.recipe.model.fault_injection
    if args.reference is not None and fault and not args.reference.is_file():
        raise ValueError(
            f"--reference {args.reference}: model.fault_injection={fault} is no teacher to compare with; make the file "
            "with a sound model first"
        )
    networks = None if kit is None else Networks(kit)
    schedule = make_schedule(opened.roles.model.cfg)
    told, sampling = _progress("pictures"), opened.consistency
    found = evaluate(
        opened.roles, samples, schedule, options, reader, sampling, told, embedder, networks, args.reference
    )
    columns = [(spec.key, spec.label) for spec in options.rows()]
    summary = {
        "data": [str(source) for source in sources],
        "unreadable_samples": dict(skipped),
        "grid": str(out / "grid.png"),
        "text_distance_engine": embedder.name if isinstance(embedder, RapidOcr) else None,
        **found.to_dict(),
    }
    out.mkdir(parents=True, exist_ok=True)
    picture_grid(found.shown, columns).save(out / "grid.png")
    files = [*_write(opened, out, summary, found.shown, columns), out / "grid.png"]
    print(table(found.rows, found.originals, found.reconstructions))
    for one in found.comparisons:
        low, high = one.rmse_difference_95
        print(
            f"{one.row} against {one.other}: latent RMSE {one.rmse_difference:+.4f} (95 % {low:+.4f} to {high:+.4f}), "
            f"nearer to the teacher in {one.wins:.0%} of the pictures"
        )
    _finish(opened, kit, files, row_metrics(summary["rows"]), {"evaluation": asdict(options), "data": summary["data"]})


def measure_benchmark(args: argparse.Namespace, opened: SamplingModel, kit: NetworkKit | None) -> None:
    """Draws and judges AnyText-benchmark, prints the table, and writes and records the results."""
    options = section(args, opened)
    reader, _ = open_engines(args, opened, options.ocr_threads)
    steps = (args.student_steps or [opened.default_steps]) if opened.has_student else []
    rows = benchmark_rows(steps, options.student_sampler, options.gamma)
    out = args.out or opened.run_dir or Path("runs/evaluate")
    benchmark = Benchmark(
        opened.roles,
        make_schedule(opened.roles.model.cfg),
        rows,
        out / PROTOCOL,
        reader,
        kit,
        opened.consistency,
        options.negative_prompt,
        options.batch,
        min(options.shown, 4),
    )
    found, skipped = {}, Counter[str]()
    for name, file in find_sets(args.benchmark).items():
        dataset = open_set(file, opened.recipe, args.first, args.count)
        samples, unreadable = read_samples(dataset, range(len(dataset)))
        skipped += unreadable
        part = file.parent.name if file.stem == "test1k" else f"{file.parent.name}_long"
        print(f"{name}: {len(samples)} prompts of {file}; {sum(unreadable.values())} more cannot be read", flush=True)
        with evaluating(opened.roles.model):
            found[name] = benchmark.run(samples, part, options.resamples, _progress("prompts"))
    summary = {
        "protocol": PROTOCOL,
        "data": [str(args.benchmark)],
        "unreadable_samples": dict(skipped),
        "seed": SEED,
        "negative_prompt": options.negative_prompt,
        "ocr_engine": reader.name if reader else None,
        "sets": {name: [row.to_dict() for row in rows_of] for name, rows_of in found.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    files = _write(opened, out, summary, benchmark.shown, [(spec.key, spec.label) for spec in rows])
    print(benchmark_table(found))
    metrics = {
        f"{name}/{row.key}/{key}": value
        for name, rows_of in found.items()
        for row in rows_of
        for key, value in row.to_dict().items()
        if key in ("sen_acc", "ned", "clip_score", "fid", "kid") and value is not None
    }
    _finish(opened, kit, files, metrics, {"protocol": PROTOCOL, "benchmark": str(args.benchmark), "count": args.count})


def _progress(what: str) -> Callable[[int, int], None]:
    began = time.perf_counter()

    def progress(done: int, total: int) -> None:
        print(f"evaluated {done}/{total} {what}, {time.perf_counter() - began:.0f} s", flush=True)

    return progress


def _write(
    opened: SamplingModel,
    out: Path,
    found: dict[str, Any],
    shown: Sequence[GridRow],
    columns: Sequence[tuple[str, str]],
) -> list[Path]:
    """summary.json and sheet.png in `out`."""
    verdict_sheet(shown, columns).save(out / "sheet.png")
    facts = opened.run_info()
    summary = {
        "command": " ".join(sys.argv),
        "checkpoint": str(opened.checkpoint) if opened.checkpoint else None,
        **{key: facts.get(key) for key in RUN_KEYS},
        "sampling": {"device": opened.device.type, "precision": opened.precision, "threads": torch.get_num_threads()},
        **found,
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(out / "summary.json", text)
    return [out / "summary.json", out / "sheet.png"]


def _finish(
    opened: SamplingModel,
    kit: NetworkKit | None,
    files: Sequence[Path],
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
) -> None:
    """Says what there is, and records it below the MLflow run of the training, where the checkpoint belongs to one."""
    if kit is None:
        print(HOW_TO)
    print(f"wrote {', '.join(str(file) for file in files)}", flush=True)
    if opened.run_dir is None or opened.checkpoint is None or not opened.recipe.tracking.enabled:
        return
    if not (opened.checkpoint / TRAINER_STATE).is_file():  # an adapter alone, beside a recipe
        return
    step = read_trainer_state(opened.checkpoint).step
    told = {"checkpoint": str(opened.checkpoint), "command": " ".join(sys.argv), **params}
    record_evaluation(opened.run_dir, opened.recipe.tracking, step, metrics, told, files)


def _check(args: argparse.Namespace) -> None:
    """Refuses what is wrong with the command itself. Raises ValueError in one line."""
    if args.count is not None and args.count < 1:
        raise ValueError(f"--count {args.count}: must be at least 1")
    EvaluationConfig(**_given(args))
    if missing := [path for path in args.data if not path.is_file()]:
        raise ValueError(f"--data {missing[0]}: no such file")
    if (args.protocol == PROTOCOL) != (args.benchmark is not None):
        raise ValueError(f"--protocol {PROTOCOL} and --benchmark DIR belong together")
    if args.benchmark is not None:
        find_sets(args.benchmark)
        for name in ("reference", "teacher_steps", "undistilled_steps", "guidance", "student_guidance"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: {PROTOCOL} says itself how pictures are sampled")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers are needed, as in 1,2,4,8") from error


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        _check(args)
        kit = open_networks(args)
        steps, sampler = args.student_steps or (), args.student_sampler or ""
        opened = load_sampling_model(
            args.checkpoint, args.config, args.overrides, args.precision, args.device, steps, sampler
        )
        (measure_benchmark if args.protocol == PROTOCOL else measure)(args, opened, kit)
    except (ValueError, OSError, OcrNotInstalled) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
