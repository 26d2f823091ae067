"""Saves a training run as checkpoints; resume.py goes on from them.

    checkpoint-N/recipe.yaml         what it was trained with
    checkpoint-N/adapter_*           the student, in PEFT format (where a LoRA is trained)
    checkpoint-N/model.safetensors   the trained weights by official name (where the weights themselves are trained)
    checkpoint-N/optimizer.safetensors, trainer_state.json   what resume needs

Where an average of the weights is kept (train.ema_decay), adapter and weights hold the average.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from distill.adapters.lora import adapter_of, lora_config
from distill.adapters.roles import STUDENT, AdapterRoles
from distill.checkpoint import formats, store
from distill.checkpoint.formats import MODEL_WEIGHTS
from distill.checkpoint.run_folder import RECIPE
from distill.config.recipes import dump_recipe
from distill.config.schema import Recipe
from distill.training.engine import Engine
from distill.training.metrics import MetricsWindow
from distill.training.null_objects import RunWriter
from distill.training.state import Progress, to_trainer_state

State = dict[str, dict[str, torch.Tensor]]


class Checkpoints:
    """Writes the checkpoints of a run. `writer` is a NullWriter on every rank but 0."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        roles: AdapterRoles,
        writer: RunWriter,
        n_samples: int,
        tracking_run_id: str,
    ) -> None:
        self._recipe, self._engine, self._roles, self._writer = recipe, engine, roles, writer
        self._n_samples, self._tracking_run_id = n_samples, tracking_run_id

    def is_due(self, progress: Progress) -> bool:
        """Whether checkpoint.save_steps or checkpoint.save_epochs asks for a checkpoint after this update."""
        config = self._recipe.checkpoint
        if config.save_steps and progress.updates % config.save_steps == 0:
            return True
        if not config.save_epochs:
            return False
        # Counted from the newest checkpoint: a pass may end in a batch whose update was skipped.
        samples, interval = self._engine.plan.effective, config.save_epochs * self._n_samples
        return progress.batches * samples // interval > progress.saved_batches * samples // interval

    def save(self, progress: Progress, window: MetricsWindow) -> None:
        """Takes a snapshot and lets rank 0 write it as checkpoint-N in the background. Collective.

        Returns as soon as training may go on; `finish` waits for the disk. Raises, on every rank, what went wrong when
        the checkpoint before was written, except for errors of the disk.
        """
        engine = self._engine
        began = time.perf_counter()
        self._wait()
        progress.saved_batches = progress.batches
        state = engine.full_state(keep=engine.world.is_main)
        shares = engine.gather(window.share())
        if not engine.world.is_main:
            return
        progress.checkpoint_failures = self._writer.failures
        trainer_state = to_trainer_state(
            progress, self._recipe, engine.scaler_state(), self._tracking_run_id, self._n_samples, shares
        )
        write = self._snapshot(state, trainer_state)
        waited, pace = time.perf_counter() - began, window.seconds_per_batch
        note = f"; training waited {waited:.2f} s" + (f", {waited / pace:.2f} of a step" if pace else "")
        self._writer.submit(progress.updates, write, note, progress.best_score if progress.is_best else None)

    def _snapshot(self, state: State, trainer_state: formats.TrainerState) -> Callable[[Path], None]:
        """A function that writes everything as it is now, whatever training does meanwhile."""
        wrapped, config = self._roles.wrapped, self._recipe.model.config
        trained = {name: slots for name, slots in state.items() if adapter_of(name) == STUDENT}
        weights = {name: slots.get("ema", slots["master"]) for name, slots in trained.items()}
        statistics = {} if isinstance(wrapped, PeftModel) else _batch_norm_statistics(self._roles.model, weights)

        def write(folder: Path) -> None:
            dump_recipe(self._recipe, folder / RECIPE)
            if isinstance(wrapped, PeftModel):
                formats.write_adapter(folder, weights, lora_config(wrapped), config)
            else:
                formats.write_tensors(folder / MODEL_WEIGHTS, weights | statistics)
            formats.write_optimizer(folder, state)
            formats.write_trainer_state(folder, trainer_state)

        return write

    def finish(self) -> None:
        """Waits until the newest checkpoint is on the disk. Collective.

        Raises CheckpointError, on every rank, where it could not be written; otherwise as `save`.
        """
        self._wait()
        failure = self._engine.gather(self._writer.last_failure)[0]
        if failure:
            raise store.CheckpointError(
                f"{self._recipe.run_dir}: the last checkpoint could not be written ({failure}); make room and give the "
                "same command again: it goes on from the one before"
            )

    def _wait(self) -> None:
        """Waits for the writer. Raises its error on every rank, because none may go on alone."""
        error: Exception | None = None
        try:
            self._writer.wait()
        except Exception as caught:
            error = caught
        told = self._engine.gather((isinstance(error, ValueError), str(error)) if error else None)[0]
        if error is not None:
            raise error
        if told is not None:
            raise ValueError(told[1]) if told[0] else RuntimeError(f"rank 0 failed to write its checkpoint: {told[1]}")

    def deliverables(self, progress: Progress) -> dict[str, list[Path]]:
        """The weights that a finished run hands over, without what only resume needs, by folder of the tracker.

        `model`: of the newest checkpoint; `best`: of the one with the best score, where anything was evaluated.
        """
        updates = {"model": progress.updates}
        if progress.best_update is not None:
            updates["best"] = progress.best_update
        names = (formats.ADAPTER_CONFIG, formats.ADAPTER_WEIGHTS, MODEL_WEIGHTS)
        folders = {kind: self._recipe.run_dir / f"checkpoint-{n}" for kind, n in updates.items()}
        return {kind: [p for name in names if (p := folder / name).is_file()] for kind, folder in folders.items()}


def _batch_norm_statistics(model: nn.Module, weights: Iterable[str]) -> dict[str, torch.Tensor]:
    """A copy of the running statistics of the parts that are trained."""
    parts = tuple({f"{name.split('.')[0]}." for name in weights})
    return {
        name: value.detach().to("cpu", torch.float32, copy=True)
        for name, value in model.named_buffers()
        if name.startswith(parts) and "running_" in name
    }
