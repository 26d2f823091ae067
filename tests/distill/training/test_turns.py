"""Two adapters that take turns under one engine: who is updated, what a state carries over, on 1 and 2 real ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.config.ds_config import read_ds_config
from distill.config.schema import TrainConfig
from distill.data.loader import BatchSizes
from distill.runtime.world import World
from distill.training.engine import Engine, init_world
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import returned, run_ranks

pytestmark = pytest.mark.process

DS_CONFIG = ROOT / "ds_configs" / "zero2_cpu.json"
TRAIN = TrainConfig(learning_rate=0.05, betas=[0.8, 0.95], weight_decay=0.1, max_grad_norm=0.0, ema_decay=0.7)
TURNS = ("fake", "fake", "student", "fake", "student", "student", "fake")
HANDED_ON = 4
ROWS = 4

State = dict[str, dict[str, torch.Tensor]]


class Pair(nn.Module):
    """Two layers of odd sizes, one used at a time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.student, self.fake = nn.Linear(5, 3), nn.Linear(5, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor, who: str) -> torch.Tensor:
        return (getattr(self, who)(x) - x[:, :3]).square().mean()

    def named(self) -> list[tuple[str, nn.Parameter]]:
        own = [(name, p) for name, p in self.named_parameters()]
        return [(n, p) for n, p in own if n.startswith("student")] + [(f"fake:{n}", p) for n, p in own if "fake" in n]


def rows(update: int) -> torch.Tensor:
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(update))


def make(world: World) -> Engine:
    pair = Pair()
    forward = pair.forward
    pair.forward = lambda item: forward(*item)  # type: ignore[method-assign, assignment]
    return Engine(pair, pair.named(), TRAIN, BatchSizes(ROWS, 1, world.size), read_ds_config(DS_CONFIG), world)


def train(engine: Engine, updates: range) -> list[State]:
    states = []
    for update in updates:
        who, batch = TURNS[update], rows(update)
        for micro in range(engine.plan.accumulation):
            row = micro * engine.plan.world + engine.world.rank
            engine.backward(engine.forward((batch[row : row + 1], who)))
        engine.step(TRAIN.learning_rate, TRAIN.ema_decay, who)
        states.append(engine.full_state())
    return states


def job(handed: State | None) -> tuple[list[State], int]:
    world = init_world(-1, 1)
    engine = make(world)
    first = 0
    if handed is not None:
        engine.load_full_state(handed)
        first = HANDED_ON
    return train(engine, range(first, len(TURNS))), engine.optimizer_bytes()


def plain() -> list[State]:
    """An AdamW for each, stepped in its own turns only."""
    pair = Pair()
    optimizers = {
        who: torch.optim.AdamW(getattr(pair, who).parameters(), lr=0.05, betas=(0.8, 0.95), weight_decay=0.1)
        for who in ("student", "fake")
    }
    average = {name: p.detach().clone() for name, p in pair.named()}
    states = []
    for update, who in enumerate(TURNS):
        optimizers[who].zero_grad()
        pair(rows(update), who).backward()
        optimizers[who].step()
        state: State = {}
        for name, p in pair.named():
            if who in name:
                average[name] = average[name] + 0.3 * (p.detach() - average[name])
            inner = optimizers["fake" if "fake" in name else "student"].state[p]
            zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": torch.zeros(())}
            slots = {slot: inner.get(slot, value).clone() for slot, value in zeros.items()}
            state[name] = {"master": p.detach().clone(), "ema": average[name].clone(), **slots}
        states.append(state)
    return states


def agree(found: list[State], wanted: list[State]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, slots in one.items():
            for slot, value in slots.items():
                torch.testing.assert_close(value, other[name][slot], rtol=1e-5, atol=1e-6, msg=f"{slot} of {name}")


def test_each_adapter_is_trained_in_its_own_turns_alone() -> None:
    wanted = plain()
    ((states, _),) = returned(run_ranks(1, job, None))
    agree(states, wanted)
    two = returned(run_ranks(2, job, None))
    agree(two[0][0], wanted)
    # resumed on another number of ranks
    ((late, _),) = returned(run_ranks(1, job, two[0][0][HANDED_ON - 1]))
    agree(late, wanted[HANDED_ON:])
    assert sum(size for _, size in two) < 1.3 * 3 * 4 * 36, "weights and two moments of 36 weights, in shares"
