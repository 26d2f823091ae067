"""The training loop. It knows no objective and no DeepSpeed: batches in, updates and metrics out."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil
import torch
from torch import nn

from anytext2.dataset import AnyWordDataset
from anytext2.randomness import seed_for
from distill import run_state
from distill.config import Recipe, ema_decay, learning_rate
from distill.engine import Engine, StepResult
from distill.latents import LatentSource
from distill.objectives.base import LossOutput, Objective, StepInput
from distill.preflight import Previews, audit_first_batch
from distill.schedule import NoiseSchedule
from distill.stream import Key, Loaded, Order, loader, micro_batches
from distill.student import Roles
from distill.tracking import Tracker, progress_line


@dataclass
class Progress:
    """What has been done so far. `batches` places the run in the stream; `updates` in the schedule."""

    updates: int = 0
    batches: int = 0
    skipped_updates: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    # Updates that fp16 skipped one after the other; a finite run never has many.
    skipped_in_a_row: int = 0


MAX_SKIPPED_IN_A_ROW = 50


class TrainingStep(nn.Module):
    """What the engine runs: one micro-batch to its loss. Holds the network, so that the engine sees its weights."""

    def __init__(self, net: nn.Module, objective: Objective, roles: Roles) -> None:
        super().__init__()
        self.net = net
        self._call = (objective, roles)  # a tuple, so that nothing of it is registered a second time

    def forward(self, item: StepInput) -> LossOutput:
        objective, roles = self._call
        return objective.loss(roles, item)


@dataclass
class Session:
    """Everything a running training holds on to."""

    recipe: Recipe
    engine: Engine
    objective: Objective
    roles: Roles
    dataset: AnyWordDataset
    progress: Progress
    tracker: Tracker | None  # rank 0 only
    latents: LatentSource
    schedule: NoiseSchedule

    def step_input(self, loaded: Loaded) -> StepInput:
        """The micro-batch on the device, with its latents where the objective wants them."""
        device = self.engine.world.device
        batch = loaded.batch.to(device, non_blocking=True)
        draws = loaded.draws(self.recipe.seed)
        if not self.objective.needs_latents:
            return StepInput(batch, draws)
        with torch.no_grad():
            return StepInput(batch, draws, self.latents(batch, draws), self.roles.model.masked_latents(batch))


def run(session: Session) -> None:
    """Trains from `session.progress` to the recipe's max_steps."""
    recipe, engine, progress = session.recipe, session.engine, session.progress
    audit_first_batch(session)
    previews = Previews(session) if session.tracker is not None and recipe.log.preview_every else None
    order = Order(len(session.dataset), recipe.seed)
    batches = micro_batches(order, engine.plan, engine.world.rank, progress.batches)
    window = _Window(engine)
    engine.module.train()
    for loaded in loader(session.dataset, batches, recipe.data.workers, engine.world.device.type == "cuda"):
        if progress.updates >= recipe.train.max_steps:
            break
        _seed_dropout(recipe, loaded.keys[0])
        output = engine.forward(session.step_input(loaded))
        engine.backward(output.loss)
        window.add(output.report, loaded.skipped)
        rate = learning_rate(recipe.train, progress.updates)
        result = engine.step(rate, ema_decay(recipe.train, progress.updates))
        if result is None:
            continue
        progress.batches += 1
        _count(session, result, loaded)
        if not result.skipped:
            _after_update(session, window, result, rate, previews)
    if session.tracker is not None:
        for path in run_state.deliverables(session):
            session.tracker.artifact(path, "model")
    if not window.is_empty:
        window.flush(session, None, learning_rate(recipe.train, progress.updates))


def _seed_dropout(recipe: Recipe, first: Key) -> None:
    """Dropout draws from torch's global generators; micro-batches are the same whatever the world size."""
    if recipe.lora.dropout:
        torch.manual_seed(seed_for(recipe.seed, first.epoch, first.index, "dropout"))


def _count(session: Session, result: StepResult, loaded: Loaded) -> None:
    progress = session.progress
    if not result.skipped:
        progress.updates += 1
        progress.skipped_in_a_row = 0
        return
    progress.skipped_updates += 1
    progress.skipped_in_a_row += 1
    if session.engine.precision != "fp16":
        raise FloatingPointError(
            f"update {progress.updates + 1}: the gradient is not finite in {session.engine.precision}; "
            f"last samples of this rank: {', '.join(loaded.batch.name)}"
        )
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise FloatingPointError(
            f"update {progress.updates + 1}: {MAX_SKIPPED_IN_A_ROW} fp16 overflows in a row, loss scale "
            f"{result.loss_scale:g}; lower train.learning_rate or use ds_configs/zero2_bf16.json"
        )


def _after_update(
    session: Session, window: _Window, result: StepResult, rate: float, previews: Previews | None
) -> None:
    recipe, updates = session.recipe, session.progress.updates
    last = updates == recipe.train.max_steps
    if last or updates % recipe.log.every == 0:
        window.flush(session, result, rate)
    if last or updates % recipe.checkpoint.save_steps == 0:
        run_state.save(session)
    if previews is not None and (last or updates % recipe.log.preview_every == 0):
        previews(session)


class _Window:
    """Sums between two log lines, on the device: nothing is read back inside a step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._micro_batches = 0
        self._unreadable: Counter[str] = Counter()
        self._since = time.perf_counter()

    @property
    def is_empty(self) -> bool:
        return self._micro_batches == 0

    def add(self, report: dict[str, torch.Tensor], unreadable: Counter[str]) -> None:
        for name, value in report.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._micro_batches += 1
        self._unreadable.update(unreadable)

    def flush(self, session: Session, result: StepResult | None, rate: float) -> None:
        """Logs the means over the window and over all ranks. Collective."""
        recipe, progress, plan = session.recipe, session.progress, self._engine.plan
        names = sorted(self._sums)
        means = self._engine.mean(torch.stack([self._sums[n] / self._micro_batches for n in names]).float()).tolist()
        _count_unreadable(session, self._unreadable)
        seconds = time.perf_counter() - self._since
        metrics = dict(zip(names, means, strict=True))
        samples_per_s = self._micro_batches * plan.micro * plan.world / seconds
        metrics |= {"learning_rate": rate, "loss_scale": self._engine.loss_scale, "samples_per_second": samples_per_s}
        metrics |= {"skipped_updates": float(progress.skipped_updates), **_memory(self._engine)}
        if result is not None and math.isfinite(result.grad_norm):
            metrics["grad_norm"] = result.grad_norm
        if session.tracker is not None:
            session.tracker.log(metrics, progress.updates)
            left = (recipe.train.max_steps - progress.updates) * plan.effective / samples_per_s
            line = progress_line(progress.updates, recipe.train.max_steps, metrics["loss"], rate, samples_per_s, left)
            print(line, flush=True)
        self._reset()


def _count_unreadable(session: Session, found: Counter[str]) -> None:
    """Adds up over ranks what could not be read, and stops the run where it is too much. Collective."""
    progress, engine = session.progress, session.engine
    new = int(engine.total(torch.tensor(float(sum(found.values())), device=engine.world.device)).item())
    if new == 0:
        return
    # Reasons are this rank's; the total is everybody's.
    progress.unreadable.update(found)
    progress.unreadable["all ranks"] += new
    seen = progress.batches * engine.plan.effective
    total = progress.unreadable["all ranks"]
    if session.tracker is not None:
        reasons = {k: v for k, v in progress.unreadable.items() if k != "all ranks"}
        print(f"data: {total} of {seen} samples could not be read and were replaced ({reasons})", flush=True)
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
