"""The training loop. It knows no objective and no DeepSpeed: micro-batches in, updates, metrics and checkpoints out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from anytext2.core.rng import seed_for
from distill.adapters.roles import AdapterRoles, Roles
from distill.checkpoint.run_lock import RunLock
from distill.compilation.intercept import Switch
from distill.config.schema import Recipe, ema_decay, learning_rate
from distill.data.batch_sampler import SampleKey
from distill.data.loader import LoadedBatch
from distill.losses.step_input import LossOutput, StepInput
from distill.objectives.base import Objective
from distill.runtime.signals import Stopped, StopRequests
from distill.tracking.run_notes import final_notes
from distill.training.checkpointing import Checkpoints
from distill.training.engine import Engine, StepResult
from distill.training.first_batch import check_first_batch
from distill.training.inputs import MicroBatches, StepInputs
from distill.training.metrics import MetricsLog
from distill.training.null_objects import RunTracker, RunWatchdog
from distill.training.previews import Previews
from distill.training.sample_log import SampleLog
from distill.training.state import Progress
from distill.training.step_guard import StepGuard
from distill.training.validation import Validation


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
class Trainer:
    """One rank's part of a run. What only rank 0 does (tracking, writing, drawing) is a null object elsewhere."""

    recipe: Recipe
    engine: Engine
    objective: Objective
    roles: AdapterRoles
    compilation: Switch
    batches: MicroBatches
    inputs: StepInputs
    progress: Progress
    guard: StepGuard
    metrics: MetricsLog
    checkpoints: Checkpoints
    validation: Validation
    previews: Previews
    samples: SampleLog
    tracker: RunTracker
    watchdog: RunWatchdog
    stop: StopRequests
    lock: RunLock | None  # rank 0's; released when the process ends
    facts: dict[str, Any]  # run.json's

    def run(self) -> Stopped | None:
        """Trains until the recipe's end, or until a rank is asked to stop: then says where. Collective.

        Raises NonFiniteLossError before an update with a loss that is not finite.
        """
        if reasons := self.guard.stop_reasons():
            return self._stop(reasons)
        if self.is_done:
            self._say_nothing_is_to_be_done()
            self._finish()
            return None
        self._check_first_batch()
        self.tracker.record_params()
        stream = self.batches.starting_at(self.progress.batches)
        self.engine.module.train()
        self.metrics.window.start_clock()
        while not self.is_done:
            reasons = self._train_batch(stream)
            if reasons and not self.is_done:
                return self._stop(reasons)
        if self.engine.world.is_main and self.progress.updates < self.recipe.train.max_steps:
            print(
                f"eval: no better spelling than at update {self.progress.best_update} in "
                f"{self.progress.evaluations_since_best} evaluations (eval.patience): the run ends",
                flush=True,
            )
        self._finish()
        return None

    def _train_batch(self, stream: Iterator[LoadedBatch]) -> str:
        """One global batch: the gradients of its micro-batches, then one optimizer step. Collective.

        Returns why the ranks stop afterwards; empty where they go on.
        """
        recipe, progress, engine = self.recipe, self.progress, self.engine
        for loaded in islice(stream, engine.plan.accumulation):
            self.watchdog.heartbeat("training")
            self._seed_dropout(loaded.keys[0])
            item = self.inputs(loaded, progress.updates)
            with self.compilation.active():
                output = engine.forward(item)
                engine.backward(output.loss)
            self.guard.add(loaded, output.per_sample)
            self.metrics.window.add(output.report, loaded.skipped)
            self.samples.add(loaded.keys)
        reasons = self.guard.before_update(progress.updates + 1)
        rate, decay = learning_rate(recipe.train, progress.updates), ema_decay(recipe.train, progress.updates)
        result = engine.step(rate, decay, self.objective.trained_adapter(progress.updates))
        progress.batches += 1
        self.samples.end_batch(progress.batches)
        self.guard.after_update(progress, result)
        if not result.skipped:
            self._after_update(result, rate)
        return reasons

    def _after_update(self, result: StepResult, rate: float) -> None:
        """What the update is the occasion for: evaluation, log line, checkpoint, preview. Collective."""
        log, progress, last = self.recipe.log, self.progress, self.is_done
        scores: dict[str, float] = {}
        if self.validation.is_due(progress.updates, last):
            self.watchdog.heartbeat("evaluation")
            with self.metrics.occasion("evaluations", progress):
                scores = self.validation.run(progress)
            last = self.is_done  # the evaluation may have used up eval.patience
        if last or scores or progress.updates % log.every == 0:
            self.metrics.flush(progress, result, rate, scores)
        else:
            self.metrics.tick(progress.updates)
        if last or self.checkpoints.is_due(progress) or progress.is_best:
            with self.metrics.occasion("checkpoints", progress):
                self.checkpoints.save(progress, self.metrics.window)
        if log.preview_every and (last or progress.updates % log.preview_every == 0):
            self.watchdog.heartbeat("evaluation")  # on every rank: the others wait for the one that draws
            with self.metrics.occasion("previews", progress):
                self.previews.draw(progress.updates)

    @property
    def is_done(self) -> bool:
        """Every update is made, or the scores have not improved for eval.patience evaluations."""
        updates = self.progress.updates
        return updates >= self.recipe.train.max_steps or self.validation.is_out_of_patience(self.progress)

    def _seed_dropout(self, first: SampleKey) -> None:
        """Dropout draws from torch's global generators; micro-batches are the same whatever the world size."""
        if self.recipe.lora.dropout:
            torch.manual_seed(seed_for(self.recipe.seed, first.epoch, first.index, "dropout"))

    def _check_first_batch(self) -> None:
        check_first_batch(
            self.recipe,
            self.objective,
            self.roles,
            self.engine,
            self.batches,
            self.inputs,
            self.tracker,
            self.progress,
        )

    def _stop(self, reasons: str) -> Stopped:
        """Saves what is not saved yet. Afterwards all ranks ignore signals. Collective."""
        progress = self.progress
        if progress.batches > progress.saved_batches:
            self.checkpoints.save(progress, self.metrics.window)
        self.checkpoints.finish()
        self.engine.barrier()
        self.stop.ignore_signals()
        checkpoint = self.recipe.run_dir / f"checkpoint-{progress.updates}"
        return Stopped(progress.updates, reasons, checkpoint if checkpoint.is_dir() else None)

    def _say_nothing_is_to_be_done(self) -> None:
        if not self.engine.world.is_main:
            return
        updates, last = self.progress.updates, self.recipe.train.max_steps
        why = f"a larger train.max_steps goes on, as in train.max_steps={2 * updates}"
        if updates < last:
            why = f"ended by eval.patience={self.recipe.eval.patience}; a larger one goes on"
        print(f"{self.recipe.run_dir} is at update {updates} of {last}: nothing to do ({why})", flush=True)

    def _finish(self) -> None:
        """Waits for the last checkpoint and hands its weights to the tracker. Collective."""
        progress = self.progress
        self.checkpoints.finish()
        for folder, paths in self.checkpoints.deliverables(progress).items():
            for path in paths:
                self.tracker.artifact(path, folder)
        for note in final_notes(self.recipe, self.facts, progress.updates, progress.best_update, progress.best_score):
            self.tracker.note(note)
