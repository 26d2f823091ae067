"""One update of the official LoRA's tensors in several ways: DDP, DeepSpeed without sharding, ZeRO-2 in variants.

Shape legend: N rows of the stand-in computation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distill.config.schema import TrainConfig
from distill.data.loader import BatchSizes
from distill.optim.optimizers import OPTIMIZERS
from distill.runtime.world import World
from distill.training.engine import Engine

Shapes = Sequence[tuple[int, ...]]


class _Wait(torch.autograd.Function):
    """The identity, with a pause in the forward and one in the backward pass, in place of the frozen network's work."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pause: Callable[[float], None], seconds: float) -> torch.Tensor:
        ctx.pause, ctx.seconds = pause, seconds
        pause(seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        ctx.pause(ctx.seconds)
        return grads[0], None, None


class Layers(nn.Module):
    """The LoRA's pairs (A, B), each a layer of its own behind the other one's result.

    shapes: of A and B in turn, as in the official adapter. seconds: of the frozen network's forward and backward pass
    together, spread over the layers; 0: the LoRA's own small products only.
    """

    def __init__(self, shapes: Shapes, seconds: float, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            nn.Parameter((torch.randn(shape, generator=generator) * 0.01).to(device)) for shape in shapes
        )
        self._seconds, self._pause = 2 * seconds / len(shapes) / 2, _pause_on(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float [N, 1]. Returns the loss, a scalar."""
        carried = x
        for a, b in zip(self.weights[::2], self.weights[1::2], strict=True):
            if self._seconds:
                carried = _Wait.apply(carried, self._pause, self._seconds)  # type: ignore[no-untyped-call]
            wide = carried.to(a.dtype).expand(-1, a.shape[1])
            out = wide @ a.flatten(1).t() @ b.flatten(1).t()
            carried = 0.5 * x + out.mean(1, keepdim=True).float()
        return carried.square().mean()


def _pause_on(device: torch.device) -> Callable[[float], None]:
    if device.type == "cpu":
        return time.sleep
    cycles = torch.cuda.get_device_properties(device).clock_rate * 1000  # a second; clock_rate is in kHz
    return lambda seconds: torch.cuda._sleep(int(seconds * cycles))


class Variant(Protocol):
    """Trains its own copy of the layers."""

    def update(self, rows: Sequence[torch.Tensor]) -> float:
        """One update from so many micro-batches; returns the gradient's norm before clipping."""
        ...


class Ddp:
    """torch's DistributedDataParallel with the same AdamW, clipping, and no reduction before the last micro-batch."""

    def __init__(self, layers: Layers, train: TrainConfig, world: World) -> None:
        on = [world.device] if world.device.type == "cuda" else None
        self._parallel = DistributedDataParallel(layers, device_ids=on, gradient_as_bucket_view=True)
        self._params, self._clip = list(layers.parameters()), train.max_grad_norm
        self._optimizer = OPTIMIZERS["adamw"].make(self._params, train, world.device, lambda total: total)

    def update(self, rows: Sequence[torch.Tensor]) -> float:
        for number, x in enumerate(rows):
            with nullcontext() if number == len(rows) - 1 else self._parallel.no_sync():
                (self._parallel(x) / len(rows)).backward()
        norm = float(nn.utils.clip_grad_norm_(self._params, self._clip))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm


class Unsharded:
    """DeepSpeed's stage 0 with the same AdamW."""

    def __init__(self, layers: Layers, train: TrainConfig, plan: BatchSizes, world: World) -> None:
        import deepspeed

        config = {
            "train_batch_size": plan.effective,
            "train_micro_batch_size_per_gpu": plan.micro,
            "gradient_accumulation_steps": plan.accumulation,
            "gradient_clipping": train.max_grad_norm,
            "zero_optimization": {"stage": 0},
            "steps_per_print": 2**31 - 1,
        }
        params = list(layers.parameters())
        optimizer = OPTIMIZERS["adamw"].make(params, train, world.device, lambda total: total)
        self._engine, *_ = deepspeed.initialize(
            model=layers, optimizer=optimizer, model_parameters=params, config=config
        )

    def update(self, rows: Sequence[torch.Tensor]) -> float:
        for x in rows:
            self._engine.backward(self._engine(x))
            self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)


class Zero:
    """The production engine. changes: of `zero_optimization`, or whole keys of the configuration."""

    def __init__(
        self, layers: Layers, train: TrainConfig, plan: BatchSizes, world: World, config: dict[str, Any]
    ) -> None:
        self._train = train
        self.engine = Engine(layers, list(layers.named_parameters()), train, plan, config, world)

    def update(self, rows: Sequence[torch.Tensor]) -> float:
        for x in rows:
            self.engine.backward(self.engine.forward(x))
        return self.engine.step(self._train.learning_rate).grad_norm


def with_changes(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of DeepSpeed's configuration with other values in `zero_optimization`."""
    changed = copy.deepcopy(config)
    changed["zero_optimization"] |= changes
    return changed
