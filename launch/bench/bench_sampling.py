"""Times sampling: `python launch/bench/bench_sampling.py [--tiny] [--batches 1,4] [--count] [key=value ...]`.

Seconds a picture, end to end (conditions, WriteNet, steps, decoding, copy to the host), of the student in 1, 4 and 8
steps, with its adapter as layers and merged, and of the teacher in 20 guided steps. The rows take turns, and the median
counts; what is encoded once a run (negative prompt, blank picture) is not timed. With --count it counts the operations
of one picture of 128 px instead, which do not depend on the size. The adapter is random, and the official size has
weights that are filled by name: values do not matter here. Prints a table and writes runs/bench/sampling.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anytext2.core.batch import Batch, collate
from anytext2.model.memory_format import use_gpu_format
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.adapters.lora import add_student
from distill.adapters.merging import MergedRoles
from distill.adapters.roles import AdapterRoles, SamplingRoles
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.inference.loading import PRECISIONS, load_dataset, resolve_device
from distill.inference.model import make_model, make_schedule
from distill.viz.grids import to_uint8
from launch.bench.operations import OperationCounter, counted_reads
from launch.common.cli import int_list, run_command
from launch.common.command_help import command_parser

if TYPE_CHECKING:
    from peft import PeftModel

FOLDER = Path("runs/bench")
TEACHER = SamplingSpec("teacher", "ddim", 20, 7.5)
STEPS = (1, 4, 8)
BAR = 8.0
"""The student's 4 steps are to be at least this many times as fast as `TEACHER`."""
COUNTED_SIZE = 128


@dataclass(frozen=True)
class Row:
    """One way of sampling: its name in the table, the roles that it needs, and what is sampled.

    context: entered around the sampling of a batch.
    """

    label: str
    roles: SamplingRoles
    spec: SamplingSpec
    context: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Medians in seconds a picture; conditions is a part of total."""

    row: str
    batch: int
    conditions: float
    total: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "Time the sampling of student and teacher.", "python launch/bench/bench_sampling.py --tiny --repeats 3"
    )
    add = parser.add_argument
    add("--tiny", action="store_true", help="the tiny model at 128 px instead of the official size at 512 px")
    add("--resolution", type=int, metavar="PIXELS", help="default: 512, with --tiny 128")
    add("--batches", type=int_list, default=[1, 4], metavar="N,N", help="pictures sampled together; default: 1,4")
    add("--repeats", type=int, default=5, metavar="N", help="of each row; default: %(default)s")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--precision", default="auto", choices=("auto", *PRECISIONS), help="of the weights")
    add("--count", action="store_true", help="count operations instead")
    add("overrides", nargs="*", metavar="key=value", help="recipe values")
    args = parser.parse_intermixed_args(argv)
    return run_command(lambda: bench(args))


def bench(args: argparse.Namespace) -> None:
    """Measures, prints the table, and writes sampling.json."""
    device = torch.device("cpu" if args.count else resolve_device(args.device))
    kind = ("fp16" if device.type == "cuda" else "fp32") if args.precision == "auto" else args.precision
    size = COUNTED_SIZE if args.count else args.resolution or (128 if args.tiny else 512)
    base = ["model.weights=embedded"] if args.tiny else ["model.weights=filled", "model.config=sd15"]
    usual = [*base, f"data.options.resolution={size}", *args.overrides]
    recipe = load_recipe(find_recipe(Path("demo.yaml" if args.tiny else "rtx4090x3.yaml")), usual)
    rows = make_rows(recipe, device, PRECISIONS[kind])
    schedule = make_schedule(rows[0].roles.model.cfg)
    batches = [read_batch(recipe, count) for count in ([1] if args.count else args.batches)]
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    facts = {"model": recipe.model.config, "resolution": size, "precision": kind, "device": card}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    results: dict[str, Any] = {**facts, "torch": torch.__version__}
    if args.count:
        results["operations"] = {row.label: count_operations(row, batches[0], schedule, recipe) for row in rows}
        print_counts(results["operations"])
    else:
        timings = [timing for batch in batches for timing in time_rows(rows, batch, schedule, recipe, args.repeats)]
        results |= {"timings": [asdict(timing) for timing in timings], "speedups": speedups(timings)}
        print_timings(timings, results["speedups"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / ("sampling_operations.json" if args.count else "sampling.json")
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file}")


@torch.no_grad()
def make_rows(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> list[Row]:
    """`rows_of` the recipe's model, with a random adapter."""
    wrapped = add_student(make_model(recipe.model, recipe.seed), recipe.lora, recipe.seed)
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    return rows_of(wrapped, recipe, device, dtype)


@torch.no_grad()
def rows_of(wrapped: PeftModel, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> list[Row]:
    """The teacher, and the student at every number of steps, with its adapter as layers and merged."""
    wrapped.requires_grad_(False)
    plain, merged = AdapterRoles(wrapped), MergedRoles(wrapped, keep_teacher=False)
    for network in (wrapped, *merged.networks):
        network.to(device=device, dtype=dtype).eval()
    for model in (plain.model, *merged.networks):
        use_gpu_format(model)
    rows = [Row(f"teacher {TEACHER.steps} guided", plain, TEACHER)]
    for steps in STEPS:
        spec = SamplingSpec("student", recipe.student.sampler, steps)
        rows += [Row(f"student {steps}", plain, spec), Row(f"student {steps} merged", merged, spec)]
    return rows


def read_batch(recipe: Recipe, count: int) -> Batch:
    """The first drawn pictures, on the host."""
    size = recipe.data.options.resolution
    folder = FOLDER / f"sampling_data_{size}"
    dataset, _ = load_dataset(write_dataset_once(folder, size, max(count, 4)), recipe)
    return collate([dataset.sample(index % len(dataset), 0) for index in range(count)])


def write_dataset_once(folder: Path, size: int, count: int) -> list[Path]:
    """The annotation file of drawn pictures in `folder`."""
    if not (folder / "data.json").is_file():
        write_dataset(folder, count, SyntheticConfig(size=max(size, COUNTED_SIZE)), seed=0)
    return [folder / "data.json"]


def time_rows(rows: Sequence[Row], batch: Batch, schedule: NoiseSchedule, recipe: Recipe, repeats: int) -> list[Timing]:
    """The rows in turns, `repeats` times after a warm-up."""
    prepare = {row.label: _preparation(row) for row in rows}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for row in rows:
            seconds = _time(row, prepare[row.label], batch, schedule, recipe)
            if repeat > 0:
                found[row.label].append(seconds)
    return [
        Timing(label, batch.size, *(statistics.median(part) / batch.size for part in zip(*measured, strict=True)))
        for label, measured in found.items()
    ]


def _preparation(row: Row) -> SamplingPreparation:
    return SamplingPreparation(row.roles, 0, "" if row.spec.guidance != 1.0 else None)


def _time(
    row: Row, prepare: SamplingPreparation, batch: Batch, schedule: NoiseSchedule, recipe: Recipe
) -> tuple[float, float]:
    """Seconds of the conditions and of everything, for the whole batch."""
    device = row.roles.model.device
    began = _now(device)
    inputs = prepare(batch.to(device).normalized())
    conditions = _now(device) - began
    with row.context():
        (sampled,) = sample_batch(row.roles, inputs, [row.spec], schedule, recipe.student.options)
    to_uint8(sampled.image)
    return conditions, _now(device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def speedups(timings: Sequence[Timing]) -> dict[str, float]:
    """How many times as fast as the teacher every row is at the same batch."""
    teacher = {timing.batch: timing.total for timing in timings if timing.row.startswith("teacher")}
    return {f"{t.row}, batch {t.batch}": teacher[t.batch] / t.total for t in timings}


def print_timings(timings: Sequence[Timing], speedup: Mapping[str, float]) -> None:
    print(f"{'row':<20}{'batch':>6}{'conditions':>12}{'s a picture':>13}{'x teacher':>11}")
    for timing in timings:
        times = speedup[f"{timing.row}, batch {timing.batch}"]
        print(f"{timing.row:<20}{timing.batch:>6}{timing.conditions:>12.3f}{timing.total:>13.3f}{times:>11.1f}")
    for name, times in speedup.items():
        if name.startswith("student 4"):
            print(f"{name}: {times:.1f} times as fast as the teacher, {BAR:.0f} are wanted: {times >= BAR}")


def count_operations(row: Row, batch: Batch, schedule: NoiseSchedule, recipe: Recipe) -> dict[str, int]:
    """ATen operations of conditions and sampling, and the values that sampling reads back to the host."""
    prepare = _preparation(row)
    normalized = batch.normalized()
    prepare(normalized)  # encodes what is encoded once
    with OperationCounter() as conditions:
        inputs = prepare(normalized)
    with counted_reads() as reads, OperationCounter() as sampling:
        (sampled,) = sample_batch(row.roles, inputs, [row.spec], schedule, recipe.student.options)
    assert sampled.nfe == row.spec.steps * (2 if row.spec.guidance != 1.0 else 1)
    return {"conditions": conditions.total, "sampling": sampling.total, "reads": reads.total()}


def print_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    print(f"{'row':<20}{'conditions':>12}{'sampling':>10}{'reads':>7}")
    for label, found in counts.items():
        print(f"{label:<20}{found['conditions']:>12}{found['sampling']:>10}{found['reads']:>7}")


if __name__ == "__main__":
    raise SystemExit(main())
