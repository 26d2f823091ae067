"""Makes docs/quality.json and the tables of docs/QUALITY.md: `python launch/experiments/quality_sweep.py`.

Trains every variant of the plan (launch/train.py), samples it at every number of steps and reads it
(launch/evaluate.py), all on the same held-out pictures and beside the same pictures of the teacher. What is done is
kept in --out: stopped at any time, the same command goes on. Exit code 0: done; 1: a run failed; 2: the plan is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distill.config.recipes import load_recipe
from distill.diffusion.samplers import SAMPLERS
from distill.tracking.metric_names import read_metrics
from launch.common.cli import require_at_least, run_command
from launch.common.command_help import command_parser
from launch.experiments.quality_page import require_marks, write_page
from launch.experiments.quality_results import Quality, curve_points, quality_rows, read_quality


class CommandFailed(RuntimeError):
    """A training or an evaluation ended with an error; the message is one line."""


@dataclass
class Variant:
    """One way of training a student.

    values: recipe overrides beside the plan's common ones. seeds: one run each. sampler: the student's; empty: its
    objective's own. Variants that differ in the sampler alone are trained once.
    """

    values: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [7])
    sampler: str = ""


@dataclass
class Plan:
    """What is compared: the content of quality.yaml.

    pictures, picture_seed: of the held-out pictures, which are drawn. batch, precision: of their sampling. sets:
    variants by name; a variant with the values of an earlier one shares its run. Every training has one rank.
    """

    recipe: str = ""
    deepspeed: str = ""
    common: list[str] = field(default_factory=list)
    pictures: int = 360
    picture_seed: int = 999
    batch: int = 16
    precision: str = "auto"
    teacher_steps: list[int] = field(default_factory=lambda: [50, 20])
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    sets: dict[str, dict[str, Variant]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training, measured with one sampler. folder: the training's name below --out."""

    folder: str
    values: tuple[str, ...]
    seed: int
    sampler: str


@dataclass(frozen=True)
class RunResult:
    """What a run left. summary: of its evaluation; curve: the lines of metrics.jsonl of its training."""

    summary: dict[str, Any]
    curve: list[dict[str, Any]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        "Train and measure every variant of a plan.",
        "python launch/experiments/quality_sweep.py --only causes --jobs 1",
    )
    parser.add_argument(
        "--plan", type=Path, default=Path("launch/experiments/quality.yaml"), metavar="YAML", help="what is compared"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), metavar="DIR", help="runs and measurements")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR", help="of quality.json, QUALITY.md")
    parser.add_argument("--only", metavar="SET,SET", help="these sets of the plan; default: all")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at once, which share the cores")
    return parser.parse_args(argv)


def read_plan(path: Path) -> Plan:
    """Raises ValueError in one line for a missing or malformed plan."""
    try:
        plan = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Plan), OmegaConf.load(path)))
    except FileNotFoundError as error:
        raise ValueError(f"--plan {path}: no such file") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"--plan {path}: {' '.join(str(error).split())}") from error
    assert isinstance(plan, Plan)
    for name in ("recipe", "deepspeed"):
        if not Path(getattr(plan, name)).is_file():
            raise ValueError(f"--plan {path}: {name}={getattr(plan, name)!r}: no such file")
    if not plan.sets or not plan.steps or not plan.teacher_steps:
        raise ValueError(f"--plan {path}: sets, steps and teacher_steps must not be empty")
    for set_name, variants in plan.sets.items():
        for name, variant in variants.items():
            _check(plan, variant, f"--plan {path}: sets.{set_name}.{name}")
    return plan


def _check(plan: Plan, variant: Variant, where: str) -> None:
    """Raises ValueError where a variant is no recipe, or cannot be sampled as the plan says."""
    if variant.sampler not in ("", *SAMPLERS):
        raise ValueError(f"{where}.sampler={variant.sampler}: one of {', '.join(SAMPLERS)}")
    try:
        recipe = load_recipe(Path(plan.recipe), [*plan.common, *variant.values])
        for steps in plan.steps:
            recipe.student.require_steps(steps, "steps", variant.sampler)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def plan_runs(plan: Plan, chosen: Sequence[str]) -> dict[str, dict[str, list[Run]]]:
    """The runs by set and variant. Equal variants share a run. Raises ValueError where one name has two meanings."""
    made: dict[tuple[tuple[str, ...], int], str] = {}
    folders: dict[str, object] = {}
    found: dict[str, dict[str, list[Run]]] = {}
    for set_name in chosen:
        for name, variant in plan.sets[set_name].items():
            for seed in variant.seeds:
                key = (tuple(variant.values), seed)
                folder = made.setdefault(key, f"{name}_{seed}")
                if folders.setdefault(folder, key) != key:
                    raise ValueError(f"sets.{set_name}.{name}: another variant of this name has other values")
                found.setdefault(set_name, {}).setdefault(name, []).append(Run(folder, *key, variant.sampler))
    return found


def seed_by_seed(runs: Mapping[str, Mapping[str, Sequence[Run]]]) -> list[Run]:
    """Each run once: the first seed of every variant before any second seed, so that half a sweep is useful."""
    ranked = [(place, run) for variants in runs.values() for own in variants.values() for place, run in enumerate(own)]
    return list(dict.fromkeys(run for _, run in sorted(ranked, key=lambda pair: pair[0])))


class SweepRunner:
    """Runs the commands of one plan, `jobs` of them at once; each writes to a log of its own."""

    def __init__(self, plan: Plan, out: Path, jobs: int) -> None:
        self.plan, self.out = plan, out.resolve()  # commands name it: the same folder must have one name
        self._threads = max(1, (os.cpu_count() or 1) // jobs)

    def prepare(self) -> dict[str, Any]:
        """Draws the held-out pictures, samples the teacher and the undistilled model. Their summary."""
        plan, held_out = self.plan, self.out / "held_out"
        _require_same_values(held_out, [f"pictures={plan.pictures}", f"picture_seed={plan.picture_seed}"])
        if not (held_out / "data.json").is_file():
            drawn = ["--out", held_out, "--count", plan.pictures, "--seed", plan.picture_seed, "--size", 128]
            run_python(self.out / "held_out.log", {}, "launch/make_dataset.py", *drawn)
        few = ",".join(map(str, plan.steps))
        steps = ["--teacher-steps", ",".join(map(str, plan.teacher_steps)), "--undistilled-steps", few]
        return self._evaluated(self.out / "undistilled", ["--config", plan.recipe, *steps], {})

    def measure(self, runs: Sequence[Run]) -> dict[Run, RunResult]:
        """Trains once and evaluates with the sampler of each of `runs`, which share a training.

        Raises ValueError where the folder holds a run of other values.
        """
        plan, run, folder = self.plan, runs[0], self.out / runs[0].folder
        values = [*plan.common, *run.values, f"seed={run.seed}"]
        _require_same_values(folder, [plan.recipe, *values])
        threads = {"OMP_NUM_THREADS": str(self._threads)}
        if not any(folder.glob("**/summary.json")):
            recipe = ["--deepspeed", plan.deepspeed, "--config", plan.recipe]
            where = [f"run_root={self.out}", f"name={run.folder}", f"train.threads={self._threads}"]
            run_python(folder / "train.log", threads, "launch/train.py", *recipe, *values, *where)
        few = ",".join(map(str, plan.steps))
        steps = ["--teacher-steps", plan.teacher_steps[0], "--undistilled-steps", "", "--student-steps", few]
        curve = list(read_metrics(folder))
        found = {}
        for one in runs:
            sampler = ["--student-sampler", one.sampler] if one.sampler else []
            summary = self._evaluated(folder / one.sampler, ["--checkpoint", folder, *steps, *sampler], threads)
            found[one] = RunResult(summary, curve)
        return found

    def _evaluated(self, folder: Path, arguments: Sequence[object], environment: Mapping[str, str]) -> dict[str, Any]:
        """The summary in `folder`. Raises ValueError where it is another evaluation's."""
        data = ["--data", self.out / "held_out" / "data.json", "--count", self.plan.pictures]
        usual = ["--batch", self.plan.batch, "--precision", self.plan.precision, "--out", folder]
        usual += ["--reference", self.out / "reference.safetensors"]
        # One seed of the recipe for all: it also draws the hints that a picture is sampled with.
        command = ["launch/evaluate.py", *arguments, *data, *usual, f"seed={self.plan.picture_seed}"]
        file = folder / "summary.json"
        if not file.is_file():
            run_python(folder / "evaluate.log", environment, *command)
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if summary["command"] != (asked := " ".join(map(str, command))):
            raise ValueError(f"{file}: not made by the plan's `{asked}`; remove it to measure again")
        return summary


def _require_same_values(folder: Path, values: Sequence[str]) -> None:
    file = folder / "variant.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != values:
        raise ValueError(f"{file}: a run of other values than the plan's; remove its folder or give another --out")


def run_python(log: Path, environment: Mapping[str, str], *arguments: object) -> None:
    """Runs a Python command of the project with its output in `log`. Raises CommandFailed where it fails."""
    command = [sys.executable, *map(str, arguments)]
    print("$", *command, ">", log, flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        ended = subprocess.run(command, stdout=output, stderr=output, env={**os.environ, **environment})
    if ended.returncode:
        raise CommandFailed(f"{arguments[0]} ended with exit code {ended.returncode}; see {log}")


def measure_all(runner: SweepRunner, runs: Sequence[Run], jobs: int) -> Iterator[dict[Run, RunResult]]:
    """All that is measured so far, after each training's runs. A failure stops what has not begun."""
    done: dict[Run, RunResult] = {}
    trainings: dict[str, list[Run]] = {}
    for run in runs:
        trainings.setdefault(run.folder, []).append(run)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(runner.measure, same): folder for folder, same in trainings.items()}
        try:
            for future in as_completed(waiting):
                done |= future.result()
                print(f"{len(done)}/{len(runs)}: {waiting[future]}", flush=True)
                yield done
        finally:
            pool.shutdown(cancel_futures=True)


def collect(
    quality: Quality, reference: dict[str, Any], runs: dict[str, dict[str, list[Run]]], done: Mapping[Run, RunResult]
) -> None:
    """Puts what is done into the tables and curves of the sets in `runs`, in the plan's order."""
    for name, variants in runs.items():
        own = [(model, run) for model, several in variants.items() for run in several if run in done]
        rows = list(quality_rows(reference, "", 0))
        for model, run in own:
            rows += quality_rows(done[run].summary, model, run.seed)
        quality.tables[name] = rows
        quality.curves[name] = [point for m, run in own for point in curve_points(done[run].curve, m, run.seed)]


def sweep(args: argparse.Namespace) -> int:
    """Runs the plan. Returns the exit code. Raises ValueError where the plan or the command is wrong."""
    plan = read_plan(args.plan)
    chosen = list(plan.sets) if args.only is None else args.only.split(",")
    if unknown := [name for name in chosen if name not in plan.sets]:
        raise ValueError(f"--only {','.join(unknown)}: the plan's sets are {', '.join(plan.sets)}")
    require_at_least(args, 1, "jobs")
    require_marks(args.docs / "QUALITY.md", chosen)  # now, and not after hours
    quality = read_quality(args.docs / "quality.json")  # sets that are not measured now stay
    facts = {
        "command": "python launch/experiments/quality_sweep.py",
        "plan": OmegaConf.to_container(OmegaConf.structured(plan)),
    }
    runs, runner = plan_runs(plan, chosen), SweepRunner(plan, args.out, args.jobs)
    try:
        reference = runner.prepare()
        for done in measure_all(runner, seed_by_seed(runs), args.jobs):
            collect(quality, reference, runs, done)
            quality.write(args.docs / "quality.json", facts)
            write_page(args.docs / "QUALITY.md", quality)
    except CommandFailed as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: sweep(args))


if __name__ == "__main__":
    raise SystemExit(main())
