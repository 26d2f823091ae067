"""Training metrics: sums on the device between two log lines, samples that could not be read, memory."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from distill.config.schema import Recipe
from distill.tracking.metric_names import SPELLING, sectioned
from distill.tracking.progress import Occasion, Occasions, install_status_line, progress_line, write_progress
from distill.training.engine import Engine, StepResult
from distill.training.null_objects import RunTracker
from distill.training.state import Progress

Gauge = Callable[[], dict[str, float]]
"""Values that are read at every log line."""


class MetricsWindow:
    """Sums between two log lines, on the device: nothing is read back inside a step.

    A checkpoint carries them along, so that a resumed run logs what an undisturbed one does.
    """

    def __init__(self, engine: Engine, shares: Sequence[dict[str, Any]] = ()) -> None:
        """shares: `share` of every rank of the run that is resumed."""
        self._engine = engine
        self.seconds_per_batch: float | None = None
        self.reset()
        if shares and shares[0]["batches"]:
            self._resume(shares)

    def reset(self) -> None:
        """Begins a new window now."""
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()  # micro-batches that reported the name: some only begin or take turns
        self._micro_batches = 0
        self._resumed = 0  # micro-batches of another process, which say nothing about speed
        self.unreadable: Counter[str] = Counter()
        self.start_clock()

    def start_clock(self) -> None:
        """Measures the speed of the window from now on."""
        self._since = time.perf_counter()

    def share(self) -> dict[str, Any]:
        """This rank's sums, at the end of a global batch. JSON values: what is not finite becomes a string."""
        names = sorted(self._sums)
        values = torch.stack([self._sums[n] for n in names]).tolist() if names else []
        return {
            "batches": self._micro_batches // self._engine.plan.accumulation,
            "micro_batches": self._micro_batches,
            "counts": dict(self._counts),
            "sums": {n: v if math.isfinite(v) else str(v) for n, v in zip(names, values, strict=True)},
            "unreadable": dict(self.unreadable),
        }

    def _resume(self, shares: Sequence[dict[str, Any]]) -> None:
        """Goes on with this rank's own sums where the ranks are the same, else with its part of the total."""
        world, plan = self._engine.world, self._engine.plan
        batches, before = shares[0]["batches"], shares[0]["micro_batches"]
        self._micro_batches = self._resumed = batches * plan.accumulation
        same = len(shares) == world.size and before == self._micro_batches
        for name in shares[0]["sums"]:
            sums = [float(share["sums"][name]) for share in shares]
            mine = sums[world.rank] if same else sum(sums) / (len(sums) * before) * self._micro_batches
            # A name belongs to whole global batches, so that this is a whole number.
            self._counts[name] = shares[0]["counts"][name] * self._micro_batches // before
            self._sums[name] = torch.tensor(mine, dtype=torch.float32, device=world.device)
        if world.is_main:
            for share in shares:
                self.unreadable.update(share["unreadable"])

    def leave_out(self, seconds: float) -> None:
        """Takes an interruption of training out of the measured time."""
        self._since += seconds

    def add(self, report: Mapping[str, torch.Tensor], unreadable: Counter[str]) -> None:
        """Adds a micro-batch: its scalars on the device, and its unreadable samples by reason."""
        for name, value in report.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float().clone()
            self._counts[name] += 1
        self._micro_batches += 1
        self.unreadable.update(unreadable)

    def means(self) -> dict[str, float]:
        """The means over the window and over all ranks. Collective."""
        names = sorted(self._sums)
        means = self._engine.mean(torch.stack([self._sums[n] / self._counts[n] for n in names]).float()).tolist()
        return dict(zip(names, means, strict=True))

    def samples_per_second(self) -> float:
        """Over all ranks, since the clock was started."""
        plan, seconds = self._engine.plan, time.perf_counter() - self._since
        speed = (self._micro_batches - self._resumed) * plan.micro * plan.world / seconds
        self.seconds_per_batch = plan.effective / speed
        return speed


class MetricsLog:
    """Logs the window's means and the gauges' values, and stops a run that cannot read its data."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        tracker: RunTracker,
        window: MetricsWindow,
        gauges: Sequence[Gauge] = (),
        n_samples: int = 0,
    ) -> None:
        self.window = window
        self._recipe, self._engine, self._tracker, self._gauges = recipe, engine, tracker, gauges
        self._occasions = _occasions(recipe, engine, n_samples)
        self._status = install_status_line() if engine.world.is_main else None
        self._line = ""
        self._failures = 0.0
        self._left: dict[str, Any] = {}

    @contextmanager
    def occasion(self, kind: str, progress: Progress) -> Iterator[None]:
        """Measures an evaluation, checkpoint or preview: the time left counts it, the speed of training does not."""
        self._write(progress.updates, kind)
        began = time.perf_counter()
        with self._occasions.measured(kind):
            yield
        self.window.leave_out(time.perf_counter() - began)
        self._write(progress.updates, "training")

    def tick(self, updates: int) -> None:
        """After an update without a log line: moves the counter of a terminal's status line. Waits for nothing."""
        if self._status is not None and self._line:
            last = self._recipe.train.max_steps
            self._status.show(f"step {updates:>{len(str(last))}}/{last}{self._line}", now=False)

    def close(self) -> None:
        """The end of the progress line of a terminal."""
        if self._status is not None:
            self._status.close()

    def flush(self, progress: Progress, result: StepResult, rate: float, scores: Mapping[str, float]) -> None:
        """Logs the window, with the scores of an evaluation, and begins a new one. Collective.

        Raises ValueError where more samples could not be read than data.max_unreadable allows.
        """
        metrics = self.window.means()
        self._count_unreadable(progress)
        speed = self.window.samples_per_second()
        metrics |= {"learning_rate": rate, "loss_scale": self._engine.loss_scale, "samples_per_second": speed}
        metrics |= {"skipped_updates": float(progress.skipped_updates), **_memory(self._engine)}
        metrics |= {f"optimizer/{name}": value for name, value in self._engine.optimizer_report.items()}
        for gauge in self._gauges:
            metrics |= gauge()
        if math.isfinite(result.grad_norm):
            metrics["grad_norm"] = result.grad_norm
        metrics |= {**scores, **self._occasions.metrics()}
        self._tracker.log(sectioned(metrics), progress.updates)
        if self._engine.world.is_main:
            self._print(progress.updates, metrics, speed, scores)
            self._tell_trouble(metrics, progress.updates)
        self.window.reset()

    def _print(self, updates: int, metrics: Mapping[str, float], speed: float, scores: Mapping[str, float]) -> None:
        last = self._recipe.train.max_steps
        left, unknown = self._occasions.time_left(updates, last, self._engine.plan.effective / speed)
        line = progress_line(updates, last, metrics["loss"], metrics["learning_rate"], speed, left, unknown)
        spelling = f"  spelling {scores[SPELLING]:.3f}" if scores else ""
        self._left = {"seconds_left": round(left, 1), "not_counted": unknown}
        self._write(updates, "training")
        if self._status is None or scores or updates >= last:
            print(line + spelling, flush=True)
        if self._status is not None:
            self._line = line[line.index("/") + len(str(last)) + 1 :] + spelling
            self._status.show(line + spelling)

    def _tell_trouble(self, metrics: Mapping[str, float], updates: int) -> None:
        failures = metrics.get("checkpoint_failures", 0.0)
        if failures > self._failures:
            self._tracker.notify("trouble", f"{failures:.0f} checkpoints could not be written", update=updates)
        self._failures = failures

    def _write(self, updates: int, phase: str) -> None:
        """Says in progress.json where the run is. Rank 0 only."""
        if self._engine.world.is_main:
            state = {"phase": phase, "update": updates, "max_steps": self._recipe.train.max_steps, **self._left}
            write_progress(self._recipe.run_dir, state | {"page": self._tracker.page})

    def _count_unreadable(self, progress: Progress) -> None:
        """Adds up over the ranks what could not be read. Collective."""
        engine, found = self._engine, self.window.unreadable
        new = int(engine.total(torch.tensor(float(found.total()), device=engine.world.device)).item())
        if new == 0:
            return
        for reasons in engine.gather(dict(found)):
            progress.unreadable.update(reasons)
        seen = progress.batches * engine.plan.effective
        total = progress.unreadable.total()
        if engine.world.is_main:
            print(
                f"data: {total} of {seen} samples could not be read and were replaced ({dict(progress.unreadable)})",
                flush=True,
            )
        limit = self._recipe.data.max_unreadable
        if total > 10 and total > limit * seen:
            raise ValueError(
                f"data.sources: {total} of {seen} samples could not be read, more than data.max_unreadable={limit} "
                "allows; check that data_root of the annotation files points to whole images"
            )


def _occasions(recipe: Recipe, engine: Engine, n_samples: int) -> Occasions:
    """What interrupts this recipe's training, and how often."""
    config = recipe.checkpoint
    every = [n for n in (config.save_steps, config.save_epochs * n_samples / engine.plan.effective) if n]
    kinds = {
        "evaluations": Occasion(recipe.eval.every, recipe.eval.every > 0),
        "checkpoints": Occasion(min(every, default=0), True),
        "previews": Occasion(recipe.log.preview_every, recipe.log.preview_every > 0),
    }
    return Occasions(kinds)


def _memory(engine: Engine) -> dict[str, float]:
    """GiB of this process (rank 0 logs): host resident set, and the device's peak."""
    memory = {"host_memory_gib": psutil.Process().memory_info().rss / 2**30}
    if engine.world.device.type == "cuda":
        memory["device_memory_peak_gib"] = torch.cuda.max_memory_allocated(engine.world.device) / 2**30
    return memory
