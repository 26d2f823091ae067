"""The training loop. It knows no objective and no DeepSpeed: batches in, updates and metrics out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from anytext2.core.rng import seed_for
from anytext2.data.dataset import AnyWordDataset
from distill.adapters.roles import STUDENT, AdapterRoles, Roles
from distill.checkpoint.run_lock import RunLock
from distill.checkpoint.writer import CheckpointWriter
from distill.config.schema import Recipe, ema_decay, learning_rate
from distill.data.batch_sampler import BatchSampler, SampleKey
from distill.data.latents import LatentSource
from distill.data.loader import LoadedBatch, load_batches, micro_batches
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step import LossOutput, StepInput
from distill.objectives.base import AlternatingObjective, Objective
from distill.runtime.signals import Stopped, StopRequests
from distill.runtime.watchdog import Phase, Watchdog
from distill.tracking.tracker import Tracker
from distill.training import checkpointing
from distill.training.engine import Engine, StepResult
from distill.training.first_batch import Previews, check_first_batch
from distill.training.metrics import MetricsWindow
from distill.training.sample_log import SampleLog
from distill.training.step_guard import StepGuard
from distill.training.validation import Validator, patience_is_exhausted


@dataclass
class Progress:
    """What has been done so far. `batches` places the run in the stream; `updates` in the schedule."""

    updates: int = 0
    batches: int = 0
    skipped_updates: int = 0
    # By reason, over all ranks.
    unreadable: Counter[str] = field(default_factory=Counter)
    # Updates that fp16 skipped one after the other; a finite run never has many.
    skipped_in_a_row: int = 0
    # `batches` at the newest checkpoint.
    saved_batches: int = 0
    checkpoint_failures: int = 0
    # Lines read exactly, NED and update of the best checkpoint so far (None: nothing was evaluated), and evaluations
    # without a better one.
    best_score: float | None = None
    best_ned: float = 0.0
    best_update: int | None = None
    evaluations_since_best: int = 0
    # The update at which checkpoint.resume_optimizer=false started the optimizer afresh.
    optimizer_restart: int | None = None
    # Of the log line that a checkpoint fell into: `MetricsWindow.share` of every rank.
    open_window: list[dict[str, Any]] = field(default_factory=list)


MAX_SKIPPED_IN_A_ROW = 50
MAX_SKIPPED_AT_FLOOR = 5


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
    roles: AdapterRoles
    dataset: AnyWordDataset
    order: BatchSampler
    progress: Progress
    tracker: Tracker | None  # rank 0 only
    latents: LatentSource
    schedule: NoiseSchedule
    writer: CheckpointWriter | None = None  # rank 0 only
    lock: RunLock | None = None  # rank 0 only: held as long as the session is
    window: MetricsWindow | None = None  # while it runs
    stop: StopRequests = field(default_factory=StopRequests)
    watchdog: Watchdog | None = None
    judge: Validator | None = None

    @property
    def is_done(self) -> bool:
        """Every update is made, or the spelling has not got better for too long."""
        return self.progress.updates >= self.recipe.train.max_steps or patience_is_exhausted(self.recipe, self.progress)

    @property
    def turn(self) -> str:
        """The adapter that the present update trains."""
        objective = self.objective
        return objective.turn(self.progress.updates) if isinstance(objective, AlternatingObjective) else STUDENT

    def beat(self, phase: Phase = "training") -> None:
        """Tells the watchdog that there is progress, and what comes next."""
        if self.watchdog is not None:
            self.watchdog.beat(phase)

    def step_input(self, loaded: LoadedBatch) -> StepInput:
        """The micro-batch on the device, with its latents where the objective wants them."""
        device = self.engine.world.device
        batch = loaded.batch.to(device, non_blocking=True).floating()
        item = StepInput(batch, loaded.draws(self.recipe.seed), update=self.progress.updates)
        if not self.objective.needs_latents:
            return item
        with torch.no_grad():
            return replace(item, latent=self.latents(batch, item.draws), masked_latent=self.latents.masked(batch))


def run(session: Session) -> Stopped | None:
    """Trains from `session.progress` to the recipe's max_steps, or until a rank is asked to stop: then says where.

    Raises NonFiniteLossError before an update with such a loss.
    """
    recipe, engine, progress = session.recipe, session.engine, session.progress
    guard = StepGuard(engine, session.stop, recipe.run_dir)
    if reasons := guard.stop_reasons():
        return _stop(session, reasons)
    check_first_batch(session)
    previews = Previews(session) if session.tracker is not None and recipe.log.preview_every else None
    batches = micro_batches(session.order, engine.plan, engine.world.rank, progress.batches)
    session.window = window = MetricsWindow(engine, progress.open_window)
    samples = SampleLog(recipe.run_dir, engine, progress.batches) if recipe.log.samples else None
    engine.module.train()
    for loaded in load_batches(session.dataset, batches, recipe.data.workers, engine.world.device.type == "cuda"):
        if session.is_done:
            break
        session.beat()
        _seed_dropout(recipe, loaded.keys[0])
        output = engine.forward(session.step_input(loaded))
        guard.see(loaded, output.per_sample)
        engine.backward(output.loss)
        window.add(output.report, loaded.skipped)
        if samples is not None:
            samples.see(loaded.keys)
        rate = learning_rate(recipe.train, progress.updates)
        if engine.is_at_boundary:
            reasons = guard.before_update(progress.updates + 1)
        result = engine.step(rate, ema_decay(recipe.train, progress.updates), session.turn)
        if result is None:
            continue
        progress.batches += 1
        if samples is not None:
            samples.end_batch(progress.batches)
        _count(session, result, loaded)
        if not result.skipped:
            _after_update(session, window, result, rate, previews)
        if reasons:
            break
    if not session.is_done:
        return _stop(session, reasons)
    if session.tracker is not None and progress.updates < recipe.train.max_steps:
        print(
            f"eval: no better spelling than at update {progress.best_update} in {progress.evaluations_since_best} "
            "evaluations (eval.patience): the run ends",
            flush=True,
        )
    checkpointing.finish(session)
    if session.tracker is not None:
        for folder, paths in checkpointing.deliverables(session).items():
            for path in paths:
                session.tracker.artifact(path, folder)
    return None


def _stop(session: Session, reasons: str) -> Stopped:
    """Saves what is not saved yet. Afterwards all ranks are deaf to signals. Collective."""
    progress = session.progress
    if progress.batches > progress.saved_batches:
        checkpointing.save(session)
    checkpointing.finish(session)
    session.engine.barrier()
    session.stop.ignore()
    checkpoint = session.recipe.run_dir / f"checkpoint-{progress.updates}"
    return Stopped(progress.updates, reasons, checkpoint if checkpoint.is_dir() else None)


def _seed_dropout(recipe: Recipe, first: SampleKey) -> None:
    """Dropout draws from torch's global generators; micro-batches are the same whatever the world size."""
    if recipe.lora.dropout:
        torch.manual_seed(seed_for(recipe.seed, first.epoch, first.index, "dropout"))


def _count(session: Session, result: StepResult, loaded: LoadedBatch) -> None:
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
    if progress.skipped_in_a_row >= MAX_SKIPPED_AT_FLOOR and session.engine.is_scale_at_floor:
        raise FloatingPointError(
            f"update {progress.updates + 1}: {progress.skipped_in_a_row} fp16 overflows in a row with the loss scale "
            f"at fp16.min_loss_scale={result.loss_scale:g}; lower train.learning_rate or use ds_configs/zero2_bf16.json"
        )
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise FloatingPointError(
            f"update {progress.updates + 1}: {MAX_SKIPPED_IN_A_ROW} fp16 overflows in a row, loss scale "
            f"{result.loss_scale:g}; lower train.learning_rate or use ds_configs/zero2_bf16.json"
        )


def _after_update(
    session: Session, window: MetricsWindow, result: StepResult, rate: float, previews: Previews | None
) -> None:
    recipe, updates = session.recipe, session.progress.updates
    scores: dict[str, float] = {}
    if session.judge is not None and (session.is_done or updates % recipe.eval.every == 0):
        session.beat("evaluation")
        scores = session.judge(session)
    last = session.is_done
    if last or scores or updates % recipe.log.every == 0:
        window.flush(session, result, rate, scores)
    if last or _checkpoint_is_due(session) or session.progress.best_update == updates:
        checkpointing.save(session)
    if recipe.log.preview_every and (last or updates % recipe.log.preview_every == 0):
        session.beat("evaluation")  # on every rank: the others wait for the one that draws
        if previews is not None:
            previews(session)


def _checkpoint_is_due(session: Session) -> bool:
    section, progress = session.recipe.checkpoint, session.progress
    if section.save_steps and progress.updates % section.save_steps == 0:
        return True
    if not section.save_epochs:
        return False
    # Counted from the newest checkpoint: a pass may end in a batch whose update was skipped.
    samples, interval = session.engine.plan.effective, section.save_epochs * session.order.length
    return progress.batches * samples // interval > progress.saved_batches * samples // interval
