"""The engine on 1, 2 and 3 real ranks: what is sharded, what an overflow does, what a state carries over.

Each world size is started once and does all its jobs; the tests look at what came back.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from distill.config.ds_config import read_ds_config
from distill.runtime.world import World
from distill.training import engine as engine_module
from distill.training.engine import StepResult, _is_news, init_world
from tests.helpers.models.toy_engine import (
    DS_CONFIGS,
    FIRST_SCALE,
    MICRO,
    MOMENTS,
    TRAIN,
    State,
    Toy,
    assert_close,
    assert_equal,
    make_engine,
    rate,
    rows,
    train_one,
)
from tests.helpers.processes.ranks import returned, run_ranks

pytestmark = pytest.mark.process

WORLDS = (2, 3, 1)  # in this order the state is handed on
UPDATES = 5
POISONED = (2, 3)  # one update uses up the hysteresis, the next halves the scale
FP16_UPDATES = 6


# --- the jobs, run by every rank ---


@dataclass(frozen=True)
class Shards:
    """Bytes of this rank: as the engine says before and after its first update, and as they are really allocated."""

    before: int
    after: int
    allocated: int
    gradients: int


def shards_job(world: World, width: int) -> Shards:
    engine = make_engine(world, "zero2_cpu.json", width=width)
    before = engine.optimizer_bytes()
    for _ in range(engine.plan.accumulation):
        engine.backward(engine.forward(rows(0)[:MICRO]))
    held = [g for group in engine._optimizer.averaged_gradients.values() for g in group or []]
    engine.step(0.1, TRAIN.ema_decay)
    inner = engine._optimizer.optimizer
    masters = [p for group in inner.param_groups for p in group["params"]]
    tensors = masters + [inner.state[m][moment] for m in masters for moment in MOMENTS]
    allocated = sum(t.untyped_storage().nbytes() for t in tensors)
    return Shards(before, engine.optimizer_bytes(), allocated, sum(g.numel() * g.element_size() for g in held))


@dataclass(frozen=True)
class Curve:
    """fp32 training: the whole state before the first and after each update."""

    states: list[State]
    results: list[StepResult]
    graph_free: bool
    mean_rank: float
    total_rank: float


def curve_job(world: World, changes: dict[str, Any] | None = None) -> Curve:
    engine = make_engine(world, read_ds_config(DS_CONFIGS / "zero2_cpu.json") | (changes or {}))
    states, results = [engine.full_state()], []
    for update in range(UPDATES):
        results.append(train_one(engine, update))
        states.append(engine.full_state())
    graph_free = not any(average.requires_grad for average in engine._ema)
    numbers = [float(f(torch.tensor([float(world.rank)]))) for f in (engine.mean, engine.total)]
    return Curve(states, results, graph_free, *numbers)


@dataclass(frozen=True)
class Moment:
    """What there is after an optimizer step that may have been skipped."""

    result: StepResult
    scale: float
    scaler: dict[str, float]
    state: State


def overflow_job(world: World, ds_name: str) -> list[Moment]:
    engine = make_engine(world, ds_name)
    moments = []
    for update in range(FP16_UPDATES):
        result = train_one(engine, update, poison=update in POISONED)
        moments.append(Moment(result, engine.loss_scale, engine.scaler_state(), engine.full_state()))
    return moments


def scaler_job(world: World, state: dict[str, float]) -> tuple[float, dict[str, float], StepResult, float]:
    """A scaler's counters into a new fp16 engine, and into one that does not scale: what that one then does."""
    fp16, fp32 = make_engine(world, "zero2.json"), make_engine(world, "zero2_cpu.json")
    fp16.load_scaler_state(state)
    fp32.load_scaler_state(state)
    return fp16.loss_scale, fp16.scaler_state(), train_one(fp32, 0), fp32._optimizer.loss_scale


@dataclass(frozen=True)
class Handover:
    """state: as loaded (or, on the first world, as trained). read_back: what the engine says it holds. weights: of the
    module itself. later: after one update more."""

    state: State
    read_back: State
    weights: dict[str, torch.Tensor]
    later: State


def handover_job(world: World, state: State | None, update: int) -> Handover:
    engine = make_engine(world, "zero2_cpu.json", seed=0 if state is None else 99)
    if state is None:
        train_one(engine, update)
        state = engine.full_state()
    else:
        engine.load_full_state(state)
    weights = {name: p.detach().clone() for name, p in engine.params}
    engine_module.BUCKET = 7  # gathered a parameter or two at a time; this process is forked for these jobs
    read_back = engine.full_state()
    train_one(engine, update + 1)
    return Handover(state, read_back, weights, engine.full_state())


def jobs(handed: State | None, update: int) -> dict[str, Any]:
    world = init_world(0, 1)
    fp16 = overflow_job(world, "zero2.json")
    return {
        "shared": shards_job(world, width=27),
        "straddling": shards_job(world, width=5),
        "curve": curve_job(world),
        "reduced_by_deepspeed": curve_job(world, {"zero_optimization": {"stage": 2, "reduce_bucket_size": 40}}),
        "sent_in_16_bits": curve_job(world, {"communication_data_type": "bf16"}),
        "fp16": fp16,
        "scaler": scaler_job(world, fp16[POISONED[-1]].scaler),
        "handover": handover_job(world, handed, update),
    }


def broken_job(ds_name: str) -> tuple[bool, State, State]:
    engine = make_engine(init_world(0, 1), ds_name)
    train_one(engine, 0)
    before = engine.full_state()
    return train_one(engine, 1, poison=True).skipped, before, engine.full_state()


@pytest.fixture(scope="module")
def done() -> dict[int, list[dict[str, Any]]]:
    """World size -> each rank's results."""
    found: dict[int, list[dict[str, Any]]] = {}
    state: State | None = None
    for update, world in enumerate(WORLDS):
        found[world] = returned(run_ranks(world, jobs, state, update))
        state = found[world][0]["handover"].later
    return found


# --- sharding ---


def test_optimizer_state_is_shared_out_as_one_over_n(done: dict[int, list[dict[str, Any]]]) -> None:
    n = sum(p.numel() for p in Toy(width=27).parameters())
    assert n == 300  # DeepSpeed pads to a multiple of twice the world size, of which this is one
    for world in sorted(done):
        sizes = [rank["shared"].allocated for rank in done[world]]
        print(f"optimizer bytes per rank, {n} weights, {world} rank(s): {' + '.join(map(str, sizes))}")
        assert sizes == [12 * n // world] * world


@pytest.mark.parametrize("kind", ["shared", "straddling"])
def test_the_bytes_are_known_before_the_first_update(done: dict[int, list[dict[str, Any]]], kind: str) -> None:
    for ranks in done.values():
        for rank in ranks:
            shards = rank[kind]
            assert shards.before == shards.after == shards.allocated


def test_gradients_are_shared_out_too(done: dict[int, list[dict[str, Any]]]) -> None:
    whole = 4 * sum(p.numel() for p in Toy(width=27).parameters())
    for world, ranks in done.items():
        assert [rank["shared"].gradients for rank in ranks] == [whole // world] * world


# --- the update ---


def plain_training() -> tuple[list[State], list[float]]:
    """The same training in float64 with torch alone: states and gradient norms before clipping."""
    toy = Toy().double()
    ema = {name: p.detach().clone() for name, p in toy.named_parameters()}
    optimizer = torch.optim.AdamW(toy.parameters(), betas=tuple(TRAIN.betas), weight_decay=TRAIN.weight_decay)
    states, norms = [], []
    for update in range(UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = rate(update)
        optimizer.zero_grad()
        toy(rows(update).double()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(toy.parameters(), TRAIN.max_grad_norm)))
        optimizer.step()
        state: State = {}
        for name, p in toy.named_parameters():
            ema[name] = TRAIN.ema_decay * ema[name] + (1 - TRAIN.ema_decay) * p.detach()
            slots = {moment: optimizer.state[p][moment] for moment in MOMENTS}
            state[name] = {"master": p.detach(), "ema": ema[name], "step": torch.tensor(update + 1.0), **slots}
            state[name] = {slot: value.float().clone() for slot, value in state[name].items()}
        states.append(state)
    return states, norms


def test_updates_are_those_of_adamw_and_the_average_follows(done: dict[int, list[dict[str, Any]]]) -> None:
    states, norms = plain_training()
    assert sum(norm > TRAIN.max_grad_norm for norm in norms) >= 2  # clipping is at work
    for ranks in done.values():
        for curve in (rank["curve"] for rank in ranks):
            assert [r.grad_norm for r in curve.results] == pytest.approx(norms, rel=1e-5)
            for ours, theirs in zip(curve.states[1:], states, strict=True):
                assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "tolerance"), [("reduced_by_deepspeed", 1e-5), ("sent_in_16_bits", 2e-2)])
def test_other_ways_of_reduction_lead_to_the_same_updates(
    done: dict[int, list[dict[str, Any]]], kind: str, tolerance: float
) -> None:
    """More weights than reduce_bucket_size holds; communication_data_type."""
    for ranks in done.values():
        other, usual = ranks[0][kind], ranks[0]["curve"]
        norms = [r.grad_norm for r in usual.results]
        assert [r.grad_norm for r in other.results] == pytest.approx(norms, rel=tolerance)
        for name, slots in other.states[1].items():
            torch.testing.assert_close(slots["exp_avg"], usual.states[1][name]["exp_avg"], rtol=tolerance, atol=1e-4)


def test_the_fresh_state_is_whole_and_zero(done: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in done.values():
        fresh = ranks[0]["curve"].states[0]
        for name, p in Toy().named_parameters():
            assert torch.equal(fresh[name]["master"], p) and torch.equal(fresh[name]["ema"], p)
            assert not any(fresh[name][slot].any() for slot in (*MOMENTS, "step"))


def test_every_rank_holds_the_same_and_the_average_no_graph(done: dict[int, list[dict[str, Any]]]) -> None:
    for world, ranks in done.items():
        for rank in ranks:
            assert_equal(rank["curve"].states[-1], ranks[0]["curve"].states[-1])
            assert rank["curve"].graph_free
            assert rank["curve"].total_rank == world * (world - 1) / 2
            assert rank["curve"].mean_rank == pytest.approx((world - 1) / 2)


# --- overflow in fp16 ---


@pytest.mark.parametrize("world", [1, 2])
def test_an_overflow_skips_the_update_and_then_halves_the_scale(
    done: dict[int, list[dict[str, Any]]], world: int
) -> None:
    for rank in done[world]:
        moments: list[Moment] = rank["fp16"]
        assert [m.result.skipped for m in moments] == [u in POISONED for u in range(FP16_UPDATES)]
        # The shipped configuration forgives one overflow (hysteresis 2); the second one halves.
        assert [m.scale for m in moments] == [FIRST_SCALE] * 3 + [FIRST_SCALE / 2] * 3
        assert [m.result.loss_scale for m in moments] == [FIRST_SCALE] * 4 + [FIRST_SCALE / 2] * 2
        assert [m.scaler["cur_hysteresis"] for m in moments] == [2, 2, 1, 1, 1, 1]
        before = moments[POISONED[0] - 1]
        for update in POISONED:
            assert math.isnan(moments[update].result.grad_norm)
            assert_equal(moments[update].state, before.state)  # weights, moments, step count and average
        after = moments[POISONED[-1] + 1]
        assert math.isfinite(after.result.grad_norm)
        for name, slots in after.state.items():
            assert slots["step"] == before.state[name]["step"] + 1 == len(POISONED) + 1
            assert not torch.equal(slots["master"], before.state[name]["master"])
            assert not torch.equal(slots["ema"], before.state[name]["ema"])


def test_fp16_trains_as_fp32_does_apart_from_rounding(done: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in done.values():
        half, whole = ranks[0]["fp16"][1], ranks[0]["curve"]
        assert half.result.grad_norm == pytest.approx(whole.results[1].grad_norm, rel=1e-2)
        for name, slots in half.state.items():
            assert slots["master"].dtype == torch.float32
            torch.testing.assert_close(slots["master"], whole.states[2][name]["master"], rtol=0, atol=5e-3)


def test_the_scaler_is_continued_where_there_is_one(done: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in done.values():
        scale, state, unscaled, internal = ranks[0]["scaler"]
        assert scale == FIRST_SCALE / 2 and state == ranks[0]["fp16"][POISONED[-1]].scaler
        assert state["cur_iter"] == POISONED[-1] + 1 and state["last_overflow_iter"] == POISONED[-1]
        assert unscaled == ranks[0]["curve"].results[0] and internal == 1.0


@pytest.mark.parametrize("ds_name", ["zero2_cpu.json", "zero2_bf16.json"])
def test_without_loss_scaling_a_gradient_that_is_not_finite_is_reported_and_harmless(ds_name: str) -> None:
    ((skipped, before, after),) = returned(run_ranks(1, broken_job, ds_name))
    assert skipped
    assert_equal(before, after)


# --- from one world size to another ---


def test_a_state_passes_through_every_world_size_exactly(done: dict[int, list[dict[str, Any]]]) -> None:
    for previous, world in zip((None, *WORLDS), WORLDS, strict=False):
        for rank in done[world]:
            handover: Handover = rank["handover"]
            if previous is not None:
                assert_equal(handover.state, done[previous][0]["handover"].later)
            assert_equal(handover.read_back, handover.state)
            for name, weight in handover.weights.items():
                assert torch.equal(weight, handover.state[name]["master"])


def test_training_goes_on_as_if_the_world_had_never_changed(done: dict[int, list[dict[str, Any]]]) -> None:
    straight = done[1][0]["curve"].states
    for update, world in enumerate(WORLDS, start=1):
        assert_close(done[world][0]["handover"].later, straight[update + 1])


def test_deepspeed_s_warning_of_a_machine_without_a_gpu_is_left_out_and_no_other() -> None:
    lines = ["Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.", "other"]
    records = [logging.LogRecord("DeepSpeed", logging.WARNING, "", 0, line, None, None) for line in lines]
    assert [_is_news(record) for record in records] == [False, True]
