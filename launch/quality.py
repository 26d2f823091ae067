"""Makes docs/quality.json and the tables of docs/QUALITY.md: `python launch/quality.py [--plan launch/quality.yaml]`.

Trains every variant of the plan (deepspeed launch/train.py), samples it at every number of steps and reads it
(launch/evaluate.py), all on the same held-out pictures and beside the same pictures of the teacher. What is done is
kept in --out: stopped at any time, the same command goes on. Exit code 0: done; 1: a run failed; 2: the plan is wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.quality import QualityRow, read_tables, require_marks, rows_of, write_rows, write_tables

BIN = Path(sys.executable).parent


@dataclass
class Variant:
    """values: recipe overrides beside the plan's common ones; seeds: one run each (none: the recipe's)."""

    values: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """What is compared. sets: variants by name; one with the values of an earlier one is that run.

    pictures, picture_seed: the held-out pictures, drawn; ranks: processes of a training.
    """

    recipe: str = ""
    deepspeed: str = ""
    ranks: int = 1
    common: list[str] = field(default_factory=list)
    pictures: int = 360
    picture_seed: int = 999
    batch: int = 16
    teacher_steps: list[int] = field(default_factory=lambda: [50, 20])
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    sets: dict[str, dict[str, Variant]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training. folder: its name below --out."""

    folder: str
    values: tuple[str, ...]
    seed: int | None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and measure every variant of a plan.")
    parser.add_argument("--plan", type=Path, default=Path("launch/quality.yaml"), metavar="YAML")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), metavar="DIR", help="runs and measurements")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR", help="of quality.json, QUALITY.md")
    parser.add_argument("--only", metavar="SET,SET", help="these sets of the plan; default: all")
    return parser.parse_args(argv)


def read_plan(path: Path) -> Plan:
    """Raises ValueError in one line for a missing or malformed plan."""
    try:
        plan = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Plan), OmegaConf.load(path)))
    except FileNotFoundError as error:
        raise ValueError(f"--plan {path}: no such file") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"--plan {path}: {str(error).splitlines()[0]}") from error
    assert isinstance(plan, Plan)
    for name in ("recipe", "deepspeed"):
        if not Path(getattr(plan, name)).is_file():
            raise ValueError(f"--plan {path}: {name}={getattr(plan, name)!r}: no such file")
    if not plan.sets or not plan.steps or not plan.teacher_steps:
        raise ValueError(f"--plan {path}: sets, steps and teacher_steps must not be empty")
    return plan


def runs_of(plan: Plan, chosen: Sequence[str]) -> dict[str, dict[str, list[Run]]]:
    """The runs by set and variant; equal ones are the same run."""
    made: dict[tuple[tuple[str, ...], int | None], Run] = {}
    folders: dict[str, object] = {}
    found: dict[str, dict[str, list[Run]]] = {}
    for set_name in chosen:
        for name, variant in plan.sets[set_name].items():
            seeds: list[int | None] = [*variant.seeds] or [None]
            for seed in seeds:
                key = (tuple(variant.values), seed)
                folder = f"{name}_{seed}" if variant.seeds else name
                run = made.setdefault(key, Run(folder, *key))
                if folders.setdefault(run.folder, key) != key:
                    raise ValueError(f"sets.{set_name}.{name}: another variant of this name has other values")
                found.setdefault(set_name, {}).setdefault(name, []).append(run)
    return found


class Bench:
    """Runs the commands of one plan."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out

    def prepare(self) -> dict[str, Any]:
        """Draws the held-out pictures, samples the teacher and the undistilled model. Their summary."""
        plan, held_out = self.plan, self.out / "held_out"
        if not (held_out / "data.json").is_file():
            drawn = ["--out", held_out, "--count", plan.pictures, "--seed", plan.picture_seed, "--size", 128]
            call(BIN / "python", "launch/make_dataset.py", *drawn)
        few = ",".join(map(str, plan.steps))
        steps = ["--teacher-steps", ",".join(map(str, plan.teacher_steps)), "--undistilled-steps", few]
        return self._evaluated("undistilled", ["--config", plan.recipe, *steps])

    def measure(self, run: Run) -> dict[str, Any]:
        """Trains and evaluates; its summary."""
        plan = self.plan
        seed = [] if run.seed is None else [f"seed={run.seed}"]
        values = [*plan.common, *run.values, *seed, f"run_root={self.out}", f"name={run.folder}"]
        if not (self.out / run.folder / "summary.json").is_file():
            ranks = ["--num_gpus", plan.ranks]
            call(
                BIN / "deepspeed",
                *ranks,
                "launch/train.py",
                "--deepspeed",
                plan.deepspeed,
                "--config",
                plan.recipe,
                *values,
            )
        few = ",".join(map(str, plan.steps))
        steps = ["--teacher-steps", plan.teacher_steps[0], "--undistilled-steps", "", "--student-steps", few]
        return self._evaluated(run.folder, ["--checkpoint", self.out / run.folder, *steps])

    def _evaluated(self, folder: str, arguments: Sequence[object]) -> dict[str, Any]:
        target = self.out / folder
        if not (target / "summary.json").is_file():
            data = ["--data", self.out / "held_out" / "data.json", "--count", self.plan.pictures]
            usual = ["--batch", self.plan.batch, "--out", target, "--reference", self.out / "reference.safetensors"]
            # One seed of the recipe for all: it also draws the hints that a picture is sampled with.
            call(BIN / "python", "launch/evaluate.py", *arguments, *data, *usual, f"seed={self.plan.picture_seed}")
        summary: dict[str, Any] = json.loads((target / "summary.json").read_text(encoding="utf-8"))
        return summary


def call(*command: object) -> None:
    """Runs a command with its output on the screen. Raises CalledProcessError where it fails."""
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def collect(bench: Bench, runs: dict[str, dict[str, list[Run]]]) -> Iterator[tuple[str, list[QualityRow]]]:
    """(set, its rows so far) after every run, the teacher's and the undistilled model's first."""
    common = list(rows_of(bench.prepare(), "", 0))
    for name, variants in runs.items():
        rows = list(common)
        for model, own in variants.items():
            for run in own:
                rows += rows_of(bench.measure(run), model, run.seed or 0)
                yield name, rows


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        plan = read_plan(args.plan)
        chosen = list(plan.sets) if args.only is None else args.only.split(",")
        if unknown := [name for name in chosen if name not in plan.sets]:
            raise ValueError(f"--only {','.join(unknown)}: the plan's sets are {', '.join(plan.sets)}")
        require_marks(args.docs / "QUALITY.md", chosen)  # now, and not after hours
        tables = read_tables(args.docs / "quality.json")  # of sets that are not made now
        facts = {"command": "python launch/quality.py", "plan": OmegaConf.to_container(OmegaConf.structured(plan))}
        for name, rows in collect(Bench(plan, args.out), runs_of(plan, chosen)):
            tables[name] = rows
            write_rows(args.docs / "quality.json", tables, facts)
            write_tables(args.docs / "QUALITY.md", tables)
    except subprocess.CalledProcessError as error:
        print(
            f"error: {error.cmd[0]} ended with exit code {error.returncode}; the same command goes on", file=sys.stderr
        )
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
