"""How far a run is, and what of it a checkpoint holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from distill.checkpoint.formats import TrainerState
from distill.config.schema import Recipe

CARRIED = ("skipped_in_a_row", "best_score", "best_ned", "best_update", "evaluations_since_best", "optimizer_restart")
"""Fields of `Progress` that a checkpoint holds under their own names."""


@dataclass
class Progress:
    """The counters of a run. `batches` is the position in the data, `updates` the position in the schedule."""

    updates: int = 0
    batches: int = 0
    skipped_updates: int = 0
    # Samples that could not be read, by reason, over all ranks.
    unreadable: Counter[str] = field(default_factory=Counter)
    # Consecutive updates that fp16 skipped; a healthy run never has many.
    skipped_in_a_row: int = 0
    # `batches` at the newest checkpoint.
    saved_batches: int = 0
    checkpoint_failures: int = 0
    # Exact match, NED and update of the best checkpoint so far (None: nothing was evaluated yet).
    best_score: float | None = None
    best_ned: float = 0.0
    best_update: int | None = None
    evaluations_since_best: int = 0
    # The update at which checkpoint.resume_optimizer=false reset the optimizer.
    optimizer_restart: int | None = None

    @property
    def is_best(self) -> bool:
        """Whether the present weights have the best score so far."""
        return self.best_update is not None and self.best_update == self.updates

    def keep_best(self, exact_match: float, ned: float) -> None:
        """Compares an evaluation's scores with the best ones; NED decides between equal exact matches."""
        if self.best_score is None or (exact_match, ned) > (self.best_score, self.best_ned):
            self.best_score, self.best_ned = exact_match, ned
            self.best_update, self.evaluations_since_best = self.updates, 0
        else:
            self.evaluations_since_best += 1


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says beside its tensors. metrics: `MetricsWindow.share` of every rank, of the open log line."""

    progress: Progress
    tracking_run_id: str = ""
    metrics: tuple[dict[str, Any], ...] = ()
    n_samples: int | None = None


def to_trainer_state(
    progress: Progress,
    recipe: Recipe,
    loss_scaler: dict[str, float],
    tracking_run_id: str,
    n_samples: int,
    metrics: list[dict[str, Any]],
) -> TrainerState:
    """The values of trainer_state.json. metrics: as in `Restored`."""
    return TrainerState(
        step=progress.updates,
        batches=progress.batches,
        seed=recipe.seed,
        effective_batch=recipe.train.effective_batch,
        skipped_steps=progress.skipped_updates,
        loss_scaler=loss_scaler,
        tracking_run_id=tracking_run_id,
        extra={
            "n_samples": n_samples,
            "unreadable": dict(progress.unreadable),
            "open_window": metrics if metrics[0]["batches"] else [],
            "checkpoint_failures": progress.checkpoint_failures,
        }
        | {name: getattr(progress, name) for name in CARRIED},
    )


def from_trainer_state(state: TrainerState) -> Restored:
    """The inverse of `to_trainer_state`; fields that an older checkpoint lacks keep their defaults."""
    extra = state.extra
    progress = Progress(
        updates=state.step,
        batches=state.batches,
        skipped_updates=state.skipped_steps,
        saved_batches=state.batches,
        unreadable=Counter(extra.get("unreadable", {})),
        checkpoint_failures=extra.get("checkpoint_failures", 0),
        **{name: extra[name] for name in CARRIED if name in extra},
    )
    return Restored(progress, state.tracking_run_id, tuple(extra.get("open_window", ())), extra.get("n_samples"))
