"""What all ranks agree on before an update: every loss is finite, and nobody was asked to stop."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.checkpoint.store import write_text_atomically
from distill.data.loader import LoadedBatch
from distill.runtime.signals import StopRequests, summarize_reasons

if TYPE_CHECKING:
    from distill.training.engine import Engine

NONFINITE_FILE = "nonfinite.json"


class NonFiniteLossError(FloatingPointError):
    """Raised on every rank before the update that such a loss would have spoiled."""


@dataclass(frozen=True)
class _Seen:
    """A micro-batch, without its pictures: losses [B] on the device."""

    indices: list[int]
    epochs: list[int]
    names: list[str]
    losses: Tensor

    def described(self) -> dict[str, Any]:
        """JSON has no NaN: values that are not finite become text."""
        losses = [value if math.isfinite(value) else str(value) for value in self.losses.float().tolist()]
        return {"indices": self.indices, "epochs": self.epochs, "names": self.names, "losses": losses}


class StepGuard:
    """Keeps the losses of an update's micro-batches on the device, and reads back two flags an update, no more."""

    def __init__(self, engine: Engine, stop: StopRequests, run_dir: Path) -> None:
        self._engine, self._stop, self._run_dir = engine, stop, run_dir
        self._seen: list[_Seen] = []

    def see(self, loaded: LoadedBatch, per_sample: Tensor) -> None:
        """Notes a micro-batch and its losses [B]; does not wait for the device."""
        epochs = [key.epoch for key in loaded.keys]
        self._seen.append(_Seen(list(loaded.batch.index), epochs, list(loaded.batch.name), per_sample.detach()))

    def before_update(self, update: int) -> str:
        """Why the ranks stop after this update (from 1); empty where none of them was asked to. Collective.

        Raises NonFiniteLossError, on every rank, where any rank has seen a loss that is not finite.
        """
        losses = torch.cat([seen.losses.float() for seen in self._seen])
        nonfinite, reasons = self._agree(losses.isfinite().all().logical_not())
        if nonfinite:
            self._report(update)
        self._seen.clear()
        return reasons

    def stop_reasons(self) -> str:
        """Why the ranks stop, where there is no loss to look at. Collective."""
        return self._agree(torch.tensor(False, device=self._engine.world.device))[1]

    def _agree(self, nonfinite: Tensor) -> tuple[bool, str]:
        reason = self._stop.reason  # read once: it may come while the ranks are asking
        asked = torch.tensor(bool(reason), device=nonfinite.device)
        flags = self._engine.largest(torch.stack([nonfinite, asked]).to(torch.int32)).tolist()
        return bool(flags[0]), summarize_reasons(self._engine.gather(reason)) if flags[1] else ""

    def _report(self, update: int) -> None:
        ranks = self._engine.gather([seen.described() for seen in self._seen])
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
