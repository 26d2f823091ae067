"""A small regression that the engine trains on real ranks, and comparisons of the engine's states."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from distill.config.ds_config import precision_of, read_ds_config
from distill.config.schema import TrainConfig
from distill.data.loader import BatchSizes
from distill.optim.optimizers import OPTIMIZERS
from distill.runtime.world import World
from distill.training.engine import Engine, StepResult
from tests.helpers.paths import ROOT

DS_CONFIGS = ROOT / "ds_configs"
MOMENTS = OPTIMIZERS["adamw"].moments
EFFECTIVE, MICRO = 12, 2
FEATURES = 7
TRAIN = TrainConfig(
    learning_rate=0.05, betas=[0.8, 0.95], weight_decay=0.1, max_grad_norm=0.3, ema_decay=0.7, effective_batch=EFFECTIVE
)
FIRST_SCALE = 2.0**10

State = dict[str, dict[str, torch.Tensor]]


class Toy(nn.Module):
    """58 weights, which neither 2 nor 3 ranks share evenly; tensors straddle the shards' borders."""

    def __init__(self, seed: int = 0, width: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.last = nn.Linear(FEATURES, width), nn.Linear(width, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean loss of rows [B, FEATURES]."""
        hidden = torch.tanh(self.first(x.to(self.first.weight.dtype)))
        return (self.last(hidden).float() - x[:, :3].float()).square().mean()


def rows(update: int) -> torch.Tensor:
    """The global batch of an update, float32 [EFFECTIVE, FEATURES]."""
    return torch.randn(EFFECTIVE, FEATURES, generator=torch.Generator().manual_seed(100 + update))


def rate(update: int) -> float:
    return TRAIN.learning_rate * (1.0 + 0.1 * update)


def make_engine(
    world: World, ds_config: str | dict[str, Any], seed: int = 0, train: TrainConfig = TRAIN, width: int = 5
) -> Engine:
    """ds_config: DeepSpeed's configuration, or the name of a shipped one."""
    config = read_ds_config(DS_CONFIGS / ds_config) if isinstance(ds_config, str) else ds_config
    if precision_of(config) == "fp16":
        config["fp16"]["initial_scale_power"] = int(math.log2(FIRST_SCALE))
    toy = Toy(seed, width)
    return Engine(toy, list(toy.named_parameters()), train, BatchSizes(EFFECTIVE, MICRO, world.size), config, world)


def train_one(engine: Engine, update: int, poison: bool = False, learning_rate: float | None = None) -> StepResult:
    """One optimizer step; poison: the gradient of the last micro-batch of the last rank is infinite."""
    plan, rank, batch = engine.plan, engine.world.rank, rows(update)
    for micro in range(plan.accumulation):
        start = (micro * plan.world + rank) * plan.micro
        loss = engine.forward(batch[start : start + plan.micro])
        if poison and micro == plan.accumulation - 1 and rank == plan.world - 1:
            loss = loss * math.inf
        engine.backward(loss)
    return engine.step(rate(update) if learning_rate is None else learning_rate, TRAIN.ema_decay)


def assert_equal(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for slot in a[name]:
            assert torch.equal(a[name][slot], b[name][slot]), (name, slot)


def assert_close(a: State, b: State, tolerance: float = 1e-5) -> None:
    for name in a:
        for slot in a[name]:
            torch.testing.assert_close(a[name][slot], b[name][slot], rtol=tolerance, atol=tolerance * 0.1)
