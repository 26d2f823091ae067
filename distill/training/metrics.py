"""What is logged between two lines: sums on the device, samples that could not be read, memory."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psutil
import torch

from distill.tracking.tracker import progress_line
from distill.training.engine import Engine, StepResult

if TYPE_CHECKING:
    from distill.training.trainer import Session


class MetricsWindow:
    """Sums between two log lines, on the device: nothing is read back inside a step.

    A checkpoint carries them along, so that a resumed run logs what an undisturbed one does.
    """

    def __init__(self, engine: Engine, shares: Sequence[dict[str, Any]] = ()) -> None:
        """shares: what the ranks of the run that is resumed had in their windows."""
        self._engine = engine
        self.seconds_per_batch: float | None = None
        self._reset()
        if shares and shares[0]["batches"]:
            self._resume(shares)

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: Counter[str] = Counter()  # micro-batches that reported the name: some only begin or take turns
        self._micro_batches = 0
        self._resumed = 0  # micro-batches of another process, which say nothing about speed
        self._unreadable: Counter[str] = Counter()
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
            "unreadable": dict(self._unreadable),
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
            reported = shares[0].get("counts", {}).get(name, before)  # older checkpoints count none
            self._counts[name] = reported * self._micro_batches // before
            self._sums[name] = torch.tensor(mine, dtype=torch.float32, device=world.device)
        if world.is_main:
            for share in shares:
                self._unreadable.update(share["unreadable"])

    def add(self, report: dict[str, torch.Tensor], unreadable: Counter[str]) -> None:
        for name, value in report.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float().clone()
            self._counts[name] += 1
        self._micro_batches += 1
        self._unreadable.update(unreadable)

    def flush(self, session: Session, result: StepResult, rate: float, scores: Mapping[str, float]) -> None:
        """Logs the means over the window and over all ranks, and an evaluation's scores beside them. Collective."""
        recipe, progress, plan = session.recipe, session.progress, self._engine.plan
        names = sorted(self._sums)
        means = self._engine.mean(torch.stack([self._sums[n] / self._counts[n] for n in names]).float()).tolist()
        count_unreadable(session, self._unreadable)
        seconds = time.perf_counter() - self._since
        metrics = dict(zip(names, means, strict=True))
        measured = self._micro_batches - self._resumed
        samples_per_s = measured * plan.micro * plan.world / seconds
        self.seconds_per_batch = plan.effective / samples_per_s
        metrics |= {"learning_rate": rate, "loss_scale": self._engine.loss_scale, "samples_per_second": samples_per_s}
        metrics |= {"skipped_updates": float(progress.skipped_updates), **_memory(self._engine)}
        metrics |= {f"optimizer/{name}": value for name, value in self._engine.optimizer_report.items()}
        if session.writer is not None:
            metrics["checkpoint_failures"] = float(session.writer.failures)
        if session.watchdog is not None and session.tracker is not None:
            metrics |= session.watchdog.metrics()
        if math.isfinite(result.grad_norm):
            metrics["grad_norm"] = result.grad_norm
        metrics |= scores
        if session.tracker is not None:
            session.tracker.log(metrics, progress.updates)
            left = (recipe.train.max_steps - progress.updates) * plan.effective / samples_per_s
            line = progress_line(progress.updates, recipe.train.max_steps, metrics["loss"], rate, samples_per_s, left)
            spelling = f"  spelling {scores['eval/exact_match']:.3f}" if scores else ""
            print(line + spelling, flush=True)
        self._reset()


def count_unreadable(session: Session, found: Counter[str]) -> None:
    """Adds up over ranks what could not be read, and stops the run where it is too much. Collective."""
    progress, engine = session.progress, session.engine
    new = int(engine.total(torch.tensor(float(sum(found.values())), device=engine.world.device)).item())
    if new == 0:
        return
    for reasons in engine.gather(dict(found)):
        progress.unreadable.update(reasons)
    seen = progress.batches * engine.plan.effective
    total = progress.unreadable.total()
    if session.tracker is not None:
        print(
            f"data: {total} of {seen} samples could not be read and were replaced ({dict(progress.unreadable)})",
            flush=True,
        )
    limit = session.recipe.data.max_unreadable
    if total > 10 and total > limit * seen:
        raise ValueError(
            f"data.sources: {total} of {seen} samples could not be read, more than data.max_unreadable={limit} allows; "
            "check that data_root of the annotation files points to whole images"
        )


def _memory(engine: Engine) -> dict[str, float]:
    """GiB of this process (rank 0 logs): host resident set, and the device's peak."""
    memory = {"host_memory_gib": psutil.Process().memory_info().rss / 2**30}
    if engine.world.device.type == "cuda":
        memory["device_memory_peak_gib"] = torch.cuda.max_memory_allocated(engine.world.device) / 2**30
    return memory
