"""Every optimizer against a reference, then on real ranks: world size, overflow and resume change nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.config.schema import TrainConfig, learning_rate
from distill.optim.optimizers import check_rate
from distill.optim.prodigy import Prodigy
from distill.runtime.world import World
from distill.training.engine import StepResult, init_world
from tests.helpers.models.toy_engine import (
    TRAIN,
    State,
    Toy,
    assert_close,
    assert_equal,
    make_engine,
    rows,
    train_one,
)
from tests.helpers.processes.ranks import returned, run_ranks

PRODIGY = replace(
    TRAIN, optimizer="prodigy", learning_rate=1.0, betas=[0.9, 0.99], weight_decay=0.01, warmup_steps=5, max_steps=40
)
UPDATES = 40
WORLDS = (1, 2, 3)
POISONED = (20, 21)


# --- Prodigy in value ---


def tanh_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, the solution and a start of a small regression; float64."""
    g = torch.Generator().manual_seed(3)
    shapes = ((40, 12), (12,), (12,))
    a, w, x = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    return a, w, 0.1 * x


def tanh_gradient(a: Tensor, w: Tensor, x: Tensor, k: int) -> Tensor:
    """Of the mean of log cosh(rows (x - w)) over the eight rows of step k."""
    part = a[(7 * k) % 33 : (7 * k) % 33 + 8]
    return part.T @ torch.tanh(part @ (x - w)) / 8


def plain_prodigy(steps: int, rate: Any) -> tuple[list[float], Tensor]:
    """The module's formulas on one vector, in the paper's own scaling (d instead of d / d_0); d after each step."""
    a, w, x = tanh_problem()
    first, d, beta1, beta2 = x.clone(), 1e-6, 0.9, 0.99
    m, v, s, r = torch.zeros(12), torch.zeros(12), torch.zeros(12), 0.0
    found = []
    for k in range(steps):
        g = tanh_gradient(a, w, x, k)
        step = rate(k) * math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * g**2
        r = beta2**0.5 * r + (1 - beta2**0.5) * step * d**2 * float(g @ (first - x))
        s = beta2**0.5 * s + (1 - beta2**0.5) * d**2 * g
        x = x - 0.01 * step * d * x - step * d * m / (v.sqrt() + d * 1e-8)
        d = max(d, r / float(s.abs().sum()))
        found.append(d)
    return found, x


def our_prodigy(steps: int, rate: Any, parts: tuple[int, ...] = (12,)) -> tuple[list[float], Tensor]:
    a, w, start = tanh_problem()
    params = [nn.Parameter(part.clone()) for part in start.split(list(parts))]
    optimizer = Prodigy(params, lambda sums: sums)
    found = []
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(k)
        gradient = tanh_gradient(a, w, torch.cat([p.detach() for p in params]), k)
        for p, part in zip(params, gradient.split(list(parts)), strict=True):
            p.grad = part
        optimizer.step()
        found.append(float(optimizer.state[params[0]]["d"]))
    return found, torch.cat([p.detach() for p in params])


def warm_up(k: int) -> float:
    return min(1.0, (k + 1) / 10)


@pytest.mark.parametrize("parts", [(12,), (5, 7)])
def test_prodigy_is_the_paper_s(parts: tuple[int, ...]) -> None:
    for rate in (warm_up, lambda k: 1.0, lambda k: 0.3 + 0.5 * math.cos(k / 9) ** 2):
        wanted, x = plain_prodigy(60, rate)
        found, ours = our_prodigy(60, rate, parts)
        assert found == pytest.approx(wanted, rel=1e-9) and wanted[-1] > 5e-5
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-12)


def test_prodigy_is_its_authors_implementation() -> None:
    """prodigyopt 1.1.2: Prodigy(lr=1, betas=(0.9, 0.99), weight_decay=0.01, use_bias_correction=True,
    safeguard_warmup=True), whose epsilon is multiplied by the next d. Figures of this very problem."""
    found, x = our_prodigy(60, warm_up)
    d = {9: 1e-06, 14: 1.0817848482498074e-06, 19: 3.0579263550322978e-06, 29: 2.5907289768704976e-05}
    d |= {39: 0.0002773561237509828, 59: 0.06344952338576298}
    assert {k: found[k] for k in d} == pytest.approx(d, rel=1e-6)
    last = [0.2040407362839269, 0.3194654937067524, 0.1216932613555418, -0.07661102885954976, 0.08188203184941553]
    assert x[:5].tolist() == pytest.approx(last, abs=1e-6)


def test_a_rate_of_zero_moves_nothing_and_finds_nothing() -> None:
    found, _ = our_prodigy(30, lambda k: 1.0)
    stopped, x = our_prodigy(40, lambda k: 1.0 if k < 30 else 0.0)
    assert stopped[:30] == found and set(stopped[30:]) == {found[-1]}
    assert torch.equal(x, our_prodigy(30, lambda k: 1.0)[1])


# --- on ranks ---


@dataclass(frozen=True)
class Run:
    """results of the updates, with the optimizer's report after each; the state at the end, and of a run that was
    stopped half way and went on from `handed`."""

    results: list[StepResult]
    reports: list[dict[str, float]]
    half: State
    state: State
    resumed: State
    bytes: int


def train_job(train: TrainConfig, width: int, handed: State | None) -> Run:
    world: World = init_world(0, 1)
    engine = make_engine(world, "zero2_cpu.json", train=train, width=width)
    results, reports, half = [], [], engine.full_state()
    for update in range(UPDATES):
        if update == UPDATES // 2:
            half = engine.full_state()
        results.append(train_one(engine, update, learning_rate=learning_rate(train, update)))
        reports.append(engine.optimizer_report)
    other = make_engine(world, "zero2_cpu.json", seed=7, train=train, width=width)
    train_one(other, 0, learning_rate=1.0)  # what is loaded must replace everything
    other.load_full_state(handed or half)
    assert_equal(other.full_state(), handed or half)
    for update in range(UPDATES // 2, UPDATES):
        train_one(other, update, learning_rate=learning_rate(train, update))
    return Run(results, reports, half, engine.full_state(), other.full_state(), engine.optimizer_bytes())


@pytest.fixture(scope="module")
def prodigy() -> dict[int, list[Run]]:
    """World size -> each rank's run. Two and three ranks resume what one rank left half way."""
    done = {1: returned(run_ranks(1, train_job, PRODIGY, 5, None))}
    return done | {world: returned(run_ranks(world, train_job, PRODIGY, 5, done[1][0].half)) for world in WORLDS[1:]}


@pytest.mark.process
def test_prodigy_under_zero2_is_prodigy_on_whole_tensors(prodigy: dict[int, list[Run]]) -> None:
    """The reference: our class on the toy's own tensors, with torch's clipping. In float32 too: the first updates, of
    1e-6, are so small beside the weights that rounding shows in d (by 0.8 % here, against float64)."""
    toy = Toy()
    optimizer = Prodigy(list(toy.parameters()), lambda sums: sums)
    clipped, reports = 0, []
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PRODIGY, update)
        optimizer.zero_grad()
        toy(rows(update)).backward()
        clipped += bool(nn.utils.clip_grad_norm_(toy.parameters(), PRODIGY.max_grad_norm) > PRODIGY.max_grad_norm)
        optimizer.step()
        reports.append(float(optimizer.state[toy.first.weight]["d"]))
    assert clipped > 2 and reports[-1] > 100 * reports[0]
    for ranks in prodigy.values():
        for run in ranks:
            assert [r["d"] for r in run.reports] == pytest.approx(reports, rel=1e-3)
            for name, p in toy.named_parameters():
                torch.testing.assert_close(run.state[name]["master"], p.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.process
def test_prodigy_does_not_depend_on_the_number_of_ranks(prodigy: dict[int, list[Run]]) -> None:
    for world, ranks in prodigy.items():
        for run in ranks:
            assert_equal(run.state, ranks[0].state)  # one d for all, to the last bit
            assert_close(run.state, prodigy[1][0].state, 1e-4)
        d = [run.state["first.bias"]["d"].item() for run in (prodigy[1][0], ranks[0])]
        print(f"d after {UPDATES} updates on {world} rank(s): {d[1]:.9e}, {d[1] / d[0] - 1:.1e} from one rank's")
        assert d[1] == pytest.approx(d[0], rel=1e-5)


@pytest.mark.process
def test_prodigy_goes_on_exactly(prodigy: dict[int, list[Run]]) -> None:
    (alone,) = prodigy[1]
    assert set(alone.state["first.bias"]) == {"master", "ema", "step", "d", "d_numerator", "exp_avg", "exp_avg_sq"} | {
        "s",
        "p0",
    }
    assert_equal(alone.resumed, alone.state)
    for world in WORLDS[1:]:
        for run in prodigy[world]:
            assert_close(run.resumed, alone.state, 1e-4)
            assert run.resumed["first.bias"]["step"] == UPDATES


def overflow_job(ds_name: str) -> list[tuple[bool, dict[str, float], State]]:
    engine = make_engine(init_world(0, 1), ds_name, train=PRODIGY)
    seen = []
    for update in range(POISONED[-1] + 3):
        done = train_one(engine, update, poison=update in POISONED, learning_rate=1.0)
        seen.append((done.skipped, engine.optimizer_report, engine.full_state()))
    return seen


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.process
def test_an_overflow_leaves_prodigy_as_it_was(world: int) -> None:
    for seen in returned(run_ranks(world, overflow_job, "zero2.json")):
        assert [skipped for skipped, _, _ in seen] == [k in POISONED for k in range(len(seen))]
        before = seen[POISONED[0] - 1]
        for update in POISONED:
            assert seen[update][1] == before[1]
            assert_equal(seen[update][2], before[2])
        after = seen[POISONED[-1] + 1][2]["first.bias"]
        assert after["step"] == before[2]["first.bias"]["step"] + 1 == POISONED[0] + 1
        assert before[1]["d"] > 1e-6 and not torch.equal(after["s"], before[2]["first.bias"]["s"])


def afresh_job(optimizer: str) -> tuple[State, State, State]:
    train = replace(PRODIGY, optimizer=optimizer, learning_rate=1.0)
    engine = make_engine(init_world(0, 1), "zero2_cpu.json", train=train)
    for update in range(3):
        train_one(engine, update, learning_rate=1.0)
    trained = engine.full_state()
    other = make_engine(engine.world, "zero2_cpu.json", seed=5, train=train)
    fresh = other.full_state()
    other.load_full_state(trained, moments=False)
    return trained, fresh, other.full_state()


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
@pytest.mark.process
def test_an_optimizer_started_afresh_begins_at_the_loaded_weights(optimizer: str) -> None:
    for trained, fresh, loaded in returned(run_ranks(2, afresh_job, optimizer)):
        for name, slots in loaded.items():
            for slot, value in slots.items():
                origin = {"master": trained[name]["master"], "ema": trained[name]["ema"], "p0": trained[name]["master"]}
                assert torch.equal(value, origin.get(slot, fresh[name][slot])), (name, slot)


# --- what the recipe says ---


def test_betas_are_the_optimizer_s_own() -> None:
    assert TrainConfig().betas == [0.9, 0.999]
    assert TrainConfig(optimizer="prodigy", learning_rate=1.0).betas == [0.9, 0.99]
    assert TrainConfig(optimizer="prodigy", learning_rate=1.0, betas=[0.8, 0.9]).betas == [0.8, 0.9]


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.0), ("prodigy", 1e-4), ("prodigy", math.nan)])
def test_a_rate_that_is_none_for_this_optimizer(optimizer: str, rate: float) -> None:
    with pytest.raises(ValueError, match=r"^train.learning_rate=") as caught:
        check_rate(optimizer, rate)
    assert "\n" not in str(caught.value) and "usual" in str(caught.value)


def test_the_removed_optimizer_is_named_with_those_there_are() -> None:
    words = r"^train.optimizer='adamw8bit': one of adamw, prodigy; adamw8bit was removed because .* 54 MB of 24 GB$"
    with pytest.raises(ValueError, match=words):
        TrainConfig(optimizer="adamw8bit")
