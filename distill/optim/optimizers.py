"""The optimizers behind `train.optimizer`: their construction, and the state that a checkpoint holds.

ZeRO-2 gives every rank one flat float32 tensor of all its weights, `master`. State with a value for each weight is a
"moment": float32 and as long as `master`. Everything else must be a number that all ranks share, a "scalar".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.optim.prodigy import Prodigy

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks."""


class OptimizerConfig(Protocol):
    """The options of every optimizer, which are in the recipe's train section."""

    learning_rate: float
    betas: list[float]
    weight_decay: float


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), PyTorch's."""

    moments: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    scalars: dict[str, torch.dtype] = {"step": torch.float32}
    betas = (0.9, 0.999)
    logged: tuple[str, ...] = ()
    """Scalars that are written to the log."""

    def make(
        self, params: list[Any], config: OptimizerConfig, device: torch.device, total: Total
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, **_common(config), fused=device.type == "cuda" or None)

    def start(self, optimizer: torch.optim.Optimizer, master: Tensor) -> None:
        """Creates fresh state before the first step, because resume writes into it and its bytes are counted."""
        # Fused Adam needs its step counter on the weights' device, the plain one on the CPU.
        step = torch.zeros((), device=master.device if optimizer.defaults["fused"] else "cpu")
        optimizer.state[master] = {"step": step} | {name: torch.zeros_like(master) for name in self.moments}

    def moment(self, optimizer: torch.optim.Optimizer, master: Tensor, name: str) -> Tensor:
        """Float32, as long as `master`; later updates may change it."""
        value: Tensor = optimizer.state[master][name]
        return value

    def put_moment(self, optimizer: torch.optim.Optimizer, master: Tensor, name: str, values: Tensor) -> None:
        optimizer.state[master][name].copy_(values)

    def scalar(self, optimizer: torch.optim.Optimizer, master: Tensor, name: str) -> float:
        return float(optimizer.state[master][name])

    def put_scalar(self, optimizer: torch.optim.Optimizer, master: Tensor, name: str, value: float) -> None:
        optimizer.state[master][name].fill_(value)


class ProdigyOptimizer(AdamW):
    """Prodigy, see distill/optim/prodigy.py."""

    moments = ("exp_avg", "exp_avg_sq", "s", "p0")
    scalars = dict.fromkeys(("step", "d", "d_numerator"), torch.float64)
    betas = (0.9, 0.99)
    logged = ("d",)

    def make(
        self, params: list[Any], config: OptimizerConfig, device: torch.device, total: Total
    ) -> torch.optim.Optimizer:
        return Prodigy(params, total, **_common(config))

    def start(self, optimizer: torch.optim.Optimizer, master: Tensor) -> None:
        assert isinstance(optimizer, Prodigy)
        optimizer.start(master)


OPTIMIZERS: dict[str, AdamW] = {"adamw": AdamW(), "prodigy": ProdigyOptimizer()}


PAUSED = "paused"
"""Key of a parameter group that the next steps leave unchanged."""


def skip_paused(optimizer: torch.optim.Optimizer) -> None:
    """Makes the optimizer's step leave paused groups alone: weights, moments and step count."""
    step = optimizer.step

    def guarded(closure: Any = None) -> Any:
        # ZeRO-2 gives the optimizer one group at a time
        kept = optimizer.param_groups
        optimizer.param_groups = [group for group in kept if not group.get(PAUSED)]
        try:
            return step(closure) if optimizer.param_groups else None
        finally:
            optimizer.param_groups = kept

    optimizer.step = guarded  # type: ignore[method-assign]


def _common(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": (config.betas[0], config.betas[1]),
        "weight_decay": config.weight_decay,
    }


def check_rate(optimizer: str, rate: float) -> None:
    """Raises ValueError for a learning rate that is not one for this optimizer."""
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"train.learning_rate={rate} must be positive; 1e-4 is usual")
    if optimizer == "prodigy" and not 0.01 <= rate <= 100.0:
        raise ValueError(
            f"train.learning_rate={rate} multiplies the step size that prodigy finds for itself: 1.0 is usual, "
            "0.01 to 100 possible"
        )
