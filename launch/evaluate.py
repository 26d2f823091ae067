"""Measures: `python launch/evaluate.py --checkpoint runs/demo [--data heldout/data.json] [--count 128]`.

Prints a table of teacher, undistilled model and student at several numbers of steps (distance to the teacher's 50
guided steps from the same noise, lines read by an OCR engine, UNet calls, seconds) and writes `summary.json` and
`grid.png`. Exit code 0: done; 2: the command, a file or a value is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from distill.checkpoint import write_text_atomically
from distill.checkpoint_files import read_trainer_state
from distill.evaluate import Evaluation, EvaluationSection, evaluate
from distill.loading import Opened, held_out_sources, open_model, open_samples, read_samples
from distill.ocr import LineReader, OcrNotInstalled
from distill.pictures import picture_grid
from distill.sampler import SAMPLERS
from distill.score_table import table
from distill.scores import row_to_plain
from distill.setup import make_schedule
from distill.tracking import Tracker

RUN_KEYS = ("mlflow_run_id", "ranks", "precision", "effective_batch", "optimizer_bytes_per_rank")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = EvaluationSection()
    parser = argparse.ArgumentParser(description="Compare a few-step student with its teacher on held-out samples.")
    parser.add_argument(
        "--checkpoint", "--run", type=Path, metavar="DIR", help="checkpoint-N, run folder or PEFT adapter"
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe; default: the one beside the checkpoint")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="JSON", help="held-out annotations; default: drawn"
    )
    parser.add_argument("--first", type=int, default=0, metavar="I", help="first sample of the dataset")
    parser.add_argument("--count", type=int, default=128, metavar="N", help="samples; fewer where the data ends")
    parser.add_argument("--guidance", type=float, help="of the teacher; 1: none; default: as distilled")
    parser.add_argument("--negative-prompt", default=defaults.negative_prompt, metavar="TEXT")
    for role in ("teacher", "undistilled", "student"):
        steps = getattr(defaults, f"{role}_steps")
        parser.add_argument(
            f"--{role}-steps", type=_numbers, default=steps, metavar="N,N", help=f"default: {','.join(map(str, steps))}"
        )
    parser.add_argument("--student-sampler", choices=SAMPLERS, help="default: its objective's own")
    parser.add_argument("--gamma", type=float, default=defaults.gamma, help="of the student's trajectory sampler")
    parser.add_argument("--batch", type=int, default=defaults.batch, metavar="N", help="pictures drawn together")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the noise")
    parser.add_argument("--shown", type=int, default=defaults.shown, metavar="N", help="rows of the grid")
    parser.add_argument("--no-ocr", action="store_true", help="leave the reading of lines out")
    parser.add_argument("--ocr-threads", type=int, default=defaults.ocr_threads, metavar="N")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the run folder, else runs/evaluate")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe values, as in model.weights=FILE")
    return parser.parse_intermixed_args(argv)


def section(args: argparse.Namespace, opened: Opened) -> EvaluationSection:
    """The evaluation's options; without an adapter there is no student to measure."""
    given = {**vars(args), "guidance": opened.guidance if args.guidance is None else args.guidance}
    given["student_sampler"] = args.student_sampler or opened.student_sampler
    if not opened.has_student:
        given["student_steps"] = []
    return EvaluationSection(
        **{field.name: given[field.name] for field in fields(EvaluationSection) if field.name in given}
    )


def measure(args: argparse.Namespace, opened: Opened) -> None:
    """Evaluates, prints the table, and writes summary.json and grid.png."""
    options = section(args, opened)
    reader = None if args.no_ocr else LineReader(options.ocr_threads)
    if args.count < 1:
        raise ValueError(f"--count {args.count}: must be at least 1")
    out = args.out or opened.run_dir or Path("runs/evaluate")
    sources = held_out_sources(args.data, opened, args.count, out / "held_out")
    dataset, report = open_samples(sources, opened.recipe)
    if not 0 <= args.first < len(dataset):
        raise ValueError(f"--first {args.first}: the dataset has {len(dataset)} samples, 0 to {len(dataset) - 1}")
    chosen = range(args.first, min(args.first + args.count, len(dataset)))
    samples, skipped = read_samples(dataset, chosen)
    print(report)
    print(f"measuring {len(samples)} samples; {sum(skipped.values())} more cannot be read {dict(skipped)}", flush=True)
    began = time.perf_counter()

    def progress(done: int, total: int) -> None:
        print(f"evaluated {done}/{total} pictures, {time.perf_counter() - began:.0f} s", flush=True)

    schedule = make_schedule(opened.roles.model)
    found = evaluate(opened.roles, samples, schedule, options, reader, opened.consistency, progress)
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "grid.png"
    picture_grid(found.shown, [(spec.key, spec.label) for spec in options.rows()]).save(picture)
    summary = _summary(opened, found, sources, skipped, picture)
    write_text_atomically(
        out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    print(table(found.rows, found.originals, found.reconstructions))
    for one in found.comparisons:
        low, high = one.rmse_difference_95
        print(
            f"{one.row} against {one.other}: latent RMSE {one.rmse_difference:+.4f} (95 % {low:+.4f} to {high:+.4f}), "
            f"nearer to the teacher in {one.wins:.0%} of the pictures"
        )
    print(f"wrote {out / 'summary.json'} and {picture}")
    _record(opened, found, out)


def _record(opened: Opened, found: Evaluation, out: Path) -> None:
    """Adds the table and the pictures to the MLflow run of the training, where the checkpoint belongs to one."""
    if opened.run_dir is None or opened.checkpoint is None or not opened.recipe.tracking.enabled:
        return
    step = read_trainer_state(opened.checkpoint).step
    tracker = Tracker(opened.run_dir, opened.recipe.tracking, None)
    measured = ("exact_match", "ned", "structure", "distance", "latent_rmse", "psnr_db", "seconds_per_image")
    numbers = {
        f"evaluation/{row.key}/{name}": float(value)
        for row in found.rows
        for name, value in row_to_plain(row).items()
        if name in measured and value is not None
    }
    tracker.log(numbers, step)
    for name in ("summary.json", "grid.png"):
        tracker.artifact(out / name, "evaluation")
    tracker.finish()


def _summary(
    opened: Opened, found: Evaluation, sources: Sequence[Path], skipped: dict[str, int], picture: Path
) -> dict[str, Any]:
    facts = opened.run_facts()
    return {
        "command": " ".join(sys.argv),
        "checkpoint": str(opened.checkpoint) if opened.checkpoint else None,
        "data": [str(source) for source in sources],
        "unreadable_samples": dict(skipped),
        "grid": str(picture),
        **{key: facts.get(key) for key in RUN_KEYS},
        "sampling": {"device": opened.device.type, "precision": opened.precision, "threads": torch.get_num_threads()},
        **found.to_dict(),
    }


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        opened = open_model(args.checkpoint, args.config, args.overrides, args.precision, args.device)
        measure(args, opened)
    except (ValueError, OSError, OcrNotInstalled) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
