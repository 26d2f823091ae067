"""Kills a training again and again and lets it go on: `python -m tests.helpers.processes.torture --kills 50`.

Half of the kills fall on a run that always goes on with two ranks and must end bit-equal to an undisturbed one; the
other half on one that goes on with one, two or three ranks, drawn at random, and must end equal up to rounding: not
further from it than an undisturbed run on three ranks is, whose sums have another order.
What is killed (a rank, the launcher, everything) and when (at the start, in an update, in a save, in an evaluation)
is drawn from a seed. Writes OUT/report.json; ends with 1 where anything was lost, repeated or different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.checkpoint.formats import read_adapter
from distill.checkpoint.store import find_checkpoint
from distill.tracking.metric_names import LOSS, is_varying, read_metrics
from tests.helpers.models.mini_model import write_mini
from tests.helpers.paths import ROOT
from tests.helpers.processes.attempts import Attempt, Launched, Start, notes_its_launcher
from tests.helpers.run_records import lineage

PICTURES = 40
BATCH = 6  # divides by one, two and three ranks
EVALUATE = 3
END_SECONDS = 600.0  # until everything must have ended after a kill; only a bound: a loaded machine needs minutes
ROUNDINGS = 2.0  # how far a killed run may be from the undisturbed one, in distances of undisturbed runs
PATIENCE = 600.0  # seconds until an attempt must have come to its next moment
RECIPE = f"""
data:
  workers: 0
  options: {{resolution: 64, max_lines: 1}}
  part: all
objective: {{name: consistency, w_min: 2.0, w_max: 4.0, solver_steps: 10, teacher_interval: 100}}
lora: {{rank: 2, alpha: 4, dropout: 0.1}}
train: {{effective_batch: {BATCH}, micro_batch: 1, learning_rate: 2.0e-3, warmup_steps: 4, ema_decay: 0.5, threads: 1}}
checkpoint: {{save_steps: 2, keep: 2}}
log: {{every: 1, samples: true, preview_every: {EVALUATE}, preview_samples: 2, preview_steps: 2}}
"""


@dataclass(frozen=True)
class Kill:
    """moment: what was waited for; fell: what the run was doing by its own traces; seconds: until all had ended."""

    moment: str
    fell: str
    target: str
    world: int
    update: int
    seconds: float


@dataclass
class Report:
    """What a torture left. max_difference: greatest relative difference of an adapter tensor or a logged value on
    changing numbers of ranks; rounding: the same of undisturbed runs on two and on three ranks; the four counts must be
    0."""

    kills: int = 0
    where: dict[str, int] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    world_sizes: list[int] = field(default_factory=list)
    bit_equal_same_world: bool = False
    max_difference: float = 0.0
    rounding: float = 0.0
    samples_missed: int = 0
    samples_repeated: int = 0
    mlflow_missing: int = 0
    mlflow_doubled: int = 0
    slowest_end_seconds: float = 0.0
    updates: int = 0
    seconds: float = 0.0
    details: list[Kill] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        faults = self.samples_missed + self.samples_repeated + self.mlflow_missing + self.mlflow_doubled
        return self.bit_equal_same_world and not faults and self.max_difference <= ROUNDINGS * self.rounding


class Run:
    """One run folder that is trained to its end, however often it is killed on the way."""

    def __init__(self, place: Path, name: str, updates: int, start: Start, rng: random.Random) -> None:
        self.folder, self._place, self._start, self._rng = place / "runs" / name, place, start, rng
        config = place / "recipe.yaml"
        self._argv = [
            "--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--config", str(config), *write_mini(place),
            f"data.sources=[{place / 'data' / 'data.json'}]", f"run_root={place / 'runs'}", f"name={name}",
            f"train.max_steps={updates}",
        ]  # fmt: skip
        self._attempts = 0

    def records(self) -> list[dict[str, Any]]:
        return list(read_metrics(self.folder))

    def update(self) -> int:
        """The newest logged update."""
        return max((record["step"] for record in self.records()), default=0)

    def begin(self, world: int) -> Attempt:
        self._attempts += 1
        return self._start(world, self._argv, self._place / f"{self.folder.name}-{self._attempts}.log")

    def complete(self, world: int) -> float:
        """Lets it come to its end; returns the seconds until it had logged something."""
        began, logged = time.monotonic(), 0.0
        attempt, before = self.begin(world), len(self.records())
        while not attempt.has_ended():
            if not logged and len(self.records()) > before:
                logged = time.monotonic() - began
            time.sleep(0.05)
        code, text = attempt.finish()
        assert code == 0, text
        return logged

    def kill(self, world: int, start_seconds: float) -> Kill | None:
        """Starts it, kills it at some moment, and waits until every process has gone. None where it ended before."""
        moment = self._rng.choice(("start", "update", "update", "save", "save", "evaluation"))
        attempt, update = self.begin(world), self.update()
        if not self._wait(attempt, moment, update, start_seconds):
            code, text = attempt.finish()
            assert code == 0, text
            return None
        targets = ["rank", "all"] + (["launcher"] if attempt.launcher else [])
        target = self._rng.choice(targets)
        if not attempt.launcher and self.update() == update:
            target = "all"  # ranks that have not met miss nobody: to end the others is then the launcher's business
        victims = attempt.ranks()
        if target == "rank" and victims:
            victims = [self._rng.choice(victims)]
        elif target == "launcher" or not victims:
            while not all(
                map(notes_its_launcher, attempt.ranks())
            ):  # before that no rank would miss it; docs/RELIABILITY.md
                time.sleep(0.01)
            victims, target = [attempt.launcher or os.getpid()], "launcher"
        elif attempt.launcher:
            victims.append(attempt.launcher)
        fell = self._doing(update)
        began = time.monotonic()
        for pid in victims:
            assert pid != os.getpid()
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        while not attempt.has_ended():
            assert time.monotonic() - began < END_SECONDS, f"{self.folder}: still there after a kill of {target}"
            time.sleep(0.02)
        attempt.finish()
        return Kill(moment, fell, target, world, self.update(), time.monotonic() - began)

    def _wait(self, attempt: Attempt, moment: str, before: int, start_seconds: float) -> bool:
        """Until the moment has come; False where the run ended without it."""
        deadline = time.monotonic() + PATIENCE
        # A save or an evaluation may be over before it is seen; then the kill comes some updates later.
        wanted = before + (self._rng.randint(1, 3) if moment == "update" else 4)
        delay = self._rng.random()
        while not attempt.ranks() or not self._has_come(moment, before, wanted):
            if attempt.has_ended():
                return False
            assert time.monotonic() < deadline, f"{self.folder}: no {moment} in {PATIENCE} s"
            time.sleep(0.0005 if moment == "save" else 0.005)
        longest = {"start": start_seconds, "update": 0.1, "save": 0.003, "evaluation": 0.05}[moment]
        end = time.monotonic() + longest * delay
        # Another start may be faster than the one that was measured: its first update ends it.
        while (left := end - time.monotonic()) > 0 and not (moment == "start" and self.update() > before):
            time.sleep(min(left, 0.05))
        return not attempt.has_ended()

    def _has_come(self, moment: str, before: int, wanted: int) -> bool:
        if moment == "start":
            return True
        if moment == "save" and self._is_saving():
            return True
        update = self.update()
        if moment == "evaluation" and update > before and self._is_evaluating(update):
            return True
        return update >= wanted

    def _is_saving(self) -> bool:
        return any(self.folder.glob(".checkpoint-*.tmp"))

    def _is_evaluating(self, update: int) -> bool:
        picture = self.folder / "previews" / f"step-{update:07d}.png"
        return update > 0 and update % EVALUATE == 0 and not picture.exists()

    def _doing(self, before: int) -> str:
        update = self.update()
        if self._is_saving():
            return "save"
        if update == before:
            return "start"
        return "evaluation" if self._is_evaluating(update) else "update"


def torture(place: Path, kills: int, seed: int, start: Start) -> Report:
    """The whole of it, in the new folder `place`."""
    began, rng, report = time.monotonic(), random.Random(seed), Report()
    write_dataset(place / "data", PICTURES, SyntheticConfig(size=96), seed=4)
    (place / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    report.updates = updates = 8 + 3 * kills
    undisturbed = Run(place, "undisturbed", updates, start, rng)
    start_seconds = undisturbed.complete(2)
    on_three = Run(place, "undisturbed_on_three", updates, start, rng)
    on_three.complete(3)
    same = Run(place, "same", updates, start, rng)
    changing = Run(place, "changing", updates, start, rng)
    for number in range(kills):
        run = same if number % 2 == 0 else changing
        world = 2 if run is same else rng.choice((1, 2, 3))
        done = run.kill(world, start_seconds)
        assert done is not None, f"{run.folder}: came to its end before kill {number + 1}; allow more updates"
        report.details.append(done)
        print(f"kill {number + 1}/{kills}: {done}", flush=True)
    same.complete(2)
    changing.complete(rng.choice((1, 2, 3)))
    _compare(report, undisturbed, same, changing)
    report.rounding = _difference(on_three, undisturbed)
    report.seconds = time.monotonic() - began
    return report


def _compare(report: Report, undisturbed: Run, same: Run, changing: Run) -> None:
    report.kills = len(report.details)
    report.where = dict(Counter(kill.fell for kill in report.details))
    report.targets = dict(Counter(kill.target for kill in report.details))
    report.world_sizes = [kill.world for kill in report.details]
    report.slowest_end_seconds = max(kill.seconds for kill in report.details)
    whole, wanted = _tensors(undisturbed), lineage(undisturbed.folder)
    report.bit_equal_same_world = all(
        torch.equal(tensor, whole[name]) for name, tensor in _tensors(same).items()
    ) and _curve(same) == _curve(undisturbed)
    report.max_difference = _difference(changing, undisturbed)
    assert len(wanted) >= report.updates
    for run in (undisturbed, same, changing):
        found = lineage(run.folder)
        used = Counter(sample for samples in found.values() for sample in samples)
        expected = Counter(sample for samples in wanted.values() for sample in samples)
        report.samples_missed += (expected - used).total()
        report.samples_repeated += (used - expected).total() + sum(n - 1 for n in expected.values())
        missing, doubled = _in_mlflow(run, report.updates)
        report.mlflow_missing += missing
        report.mlflow_doubled += doubled


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    return read_adapter(find_checkpoint(run.folder))[0]


def _curve(run: Run) -> dict[int, dict[str, float]]:
    return {r["step"]: {k: v for k, v in r.items() if not is_varying(k)} for r in run.records()}


def _difference(run: Run, undisturbed: Run) -> float:
    """The greatest relative difference of an adapter tensor, a loss or a learning rate."""
    whole = _tensors(undisturbed)
    tensors = (float((tensor - whole[name]).norm() / whole[name].norm()) for name, tensor in _tensors(run).items())
    return max(*tensors, *_distances(_curve(run), _curve(undisturbed)))


def _distances(curve: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> list[float]:
    assert curve.keys() == other.keys()
    pairs = [(curve[step][name], other[step][name]) for step in curve for name in (LOSS, "train/learning_rate")]
    return [abs(a - b) / max(abs(b), 1e-12) for a, b in pairs]


def _in_mlflow(run: Run, updates: int) -> tuple[int, int]:
    """Steps of the loss that MLflow lacks, and those that it has more than once; a second run counts as all doubled."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'anytext2-distill'")
    found = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run.folder.name}'")
    steps = Counter(metric.step for one in found for metric in client.get_metric_history(one.info.run_id, LOSS))
    missing = sum(step not in steps for step in range(1, updates + 1))
    return missing, sum(count - 1 for count in steps.values()) + (len(found) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training at random moments and let it go on.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "torture")
    args = parser.parse_args()
    place = args.out / time.strftime("%Y%m%d-%H%M%S")
    place.mkdir(parents=True)
    report = torture(place, args.kills, args.seed, Launched)
    path = args.out / "report.json"
    path.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    shown = {name: value for name, value in asdict(report).items() if name != "details"}
    print(json.dumps(shown, indent=1), f"\nwrote {path}", flush=True)
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
