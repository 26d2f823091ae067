"""What all ranks agree on around an update: every loss is finite, nobody asked to stop, the loss scale still works."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.checkpoint.store import write_text_atomically
from distill.data.loader import LoadedBatch
from distill.runtime.signals import StopRequests, summarize_reasons
from distill.training.engine import Engine, StepResult
from distill.training.state import Progress

NONFINITE_FILE = "nonfinite.json"
MAX_SKIPPED_IN_A_ROW = 50
MAX_SKIPPED_AT_FLOOR = 5


class NonFiniteLossError(FloatingPointError):
    """Raised on every rank before the update that such a loss would have spoiled."""


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch, without its pictures: losses [B] on the device."""

    indices: list[int]
    epochs: list[int]
    names: list[str]
    losses: Tensor

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: values that are not finite become text."""
        losses = [value if math.isfinite(value) else str(value) for value in self.losses.float().tolist()]
        return {"indices": self.indices, "epochs": self.epochs, "names": self.names, "losses": losses}


class StepGuard:
    """Keeps the losses of an update's micro-batches on the device, and reads back two flags an update, no more."""

    def __init__(self, engine: Engine, stop: StopRequests, run_dir: Path) -> None:
        self._engine, self._stop, self._run_dir = engine, stop, run_dir
        self._micro_batches: list[_MicroBatch] = []

    def add(self, loaded: LoadedBatch, per_sample: Tensor) -> None:
        """Notes a micro-batch and its losses [B]; does not wait for the device."""
        epochs = [key.epoch for key in loaded.keys]
        batch = loaded.batch
        self._micro_batches.append(_MicroBatch(list(batch.index), epochs, list(batch.name), per_sample.detach()))

    def before_update(self, update: int) -> str:
        """Why the ranks stop after this update (from 1); empty where none of them was asked to. Collective.

        Raises NonFiniteLossError, on every rank, where any rank has a loss that is not finite.
        """
        losses = torch.cat([one.losses.float() for one in self._micro_batches])
        nonfinite, reasons = self._agree(losses.isfinite().all().logical_not())
        if nonfinite:
            self._report(update)
        return reasons

    def after_update(self, progress: Progress, result: StepResult) -> None:
        """Counts the update, or fp16's skipping of it.

        Raises FloatingPointError where a gradient is not finite in another precision, or where too many updates were
        skipped one after the other.
        """
        last, self._micro_batches = self._micro_batches[-1], []
        if not result.skipped:
            progress.updates += 1
            progress.skipped_in_a_row = 0
            return
        progress.skipped_updates += 1
        progress.skipped_in_a_row += 1
        update, skipped, precision = progress.updates + 1, progress.skipped_in_a_row, self._engine.precision
        if precision != "fp16":
            raise FloatingPointError(
                f"update {update}: the gradient is not finite in {precision}; "
                f"last samples of this rank: {', '.join(last.names)}"
            )
        advice = "lower train.learning_rate or use ds_configs/zero2_bf16.json"
        if skipped >= MAX_SKIPPED_AT_FLOOR and self._engine.is_scale_at_floor:
            raise FloatingPointError(
                f"update {update}: {skipped} fp16 overflows in a row with the loss scale at fp16.min_loss_scale="
                f"{result.loss_scale:g}; {advice}"
            )
        if skipped >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"update {update}: {skipped} fp16 overflows in a row, loss scale {result.loss_scale:g}; {advice}"
            )

    def stop_reasons(self) -> str:
        """Why the ranks stop, where there is no loss to look at. Collective."""
        return self._agree(torch.tensor(False, device=self._engine.world.device))[1]

    def _agree(self, nonfinite: Tensor) -> tuple[bool, str]:
        reason = self._stop.reason  # read once: it may come while the ranks are asking
        asked = torch.tensor(bool(reason), device=nonfinite.device)
        flags = self._engine.largest(torch.stack([nonfinite, asked]).to(torch.int32)).tolist()
        return bool(flags[0]), summarize_reasons(self._engine.gather(reason)) if flags[1] else ""

    def _report(self, update: int) -> None:
        ranks = self._engine.gather([one.to_json() for one in self._micro_batches])
        path = self._run_dir / NONFINITE_FILE
        if self._engine.world.is_main:
            content = {"update": update, "ranks": [{"rank": r, "micro_batches": m} for r, m in enumerate(ranks)]}
            write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        bad = [
            f"{index} ({name}) on rank {rank}"
            for rank, micro_batches in enumerate(ranks)
            for one in micro_batches
            for index, name, loss in zip(one["indices"], one["names"], one["losses"], strict=True)
            if isinstance(loss, str)
        ]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteLossError(
            f"update {update}: the loss of sample {bad[0]}{more} is not finite; the update was not made, {path} lists "
            "the batch"
        )
