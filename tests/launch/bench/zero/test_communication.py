"""The model of an update's communication, and that it counts what the engine really sends."""

from __future__ import annotations

from typing import Any

import pytest

from distill.training.engine import init_world
from launch.bench.zero.collectives import counted_collectives
from launch.bench.zero.communication import LINKS, RTX4090, Computation, Link, Scheme, schemes, send_seconds, sent_bytes
from tests.helpers.models.toy_engine import MICRO, Toy, make_engine, rows
from tests.helpers.processes.ranks import returned, run_ranks

VALUES = 300
WIDTH = 27  # a toy of so many values, which 2 and 3 ranks share evenly


def test_a_ring_passes_on_all_but_its_own_part() -> None:
    ours, theirs, ddp = schemes(VALUES, micro_steps=4)
    assert sent_bytes(ddp, 2) == 8 * VALUES / 2 and sent_bytes(ddp, 4) == 8 * VALUES * 3 / 4
    assert sent_bytes(ours, 3) == pytest.approx(0.75 * sent_bytes(ddp, 3))
    assert sent_bytes(theirs, 3) == pytest.approx((4 * 2 + 5 * 2) / 6 * sent_bytes(ours, 3))
    assert all(sent_bytes(scheme, 1) == 0 for scheme in (ours, theirs, ddp))


def test_the_time_has_a_part_for_bytes_and_one_for_hops() -> None:
    link = Link("a link", rate=1000.0, latency=0.5)
    assert send_seconds(Scheme("two halves", (1000,), (1000,)), 2, link) == pytest.approx(1.0 + 2 * 0.5)
    assert send_seconds(Scheme("nothing", (), ()), 8, link) == 0.0
    assert all(send_seconds(s, 64, link) > send_seconds(s, 2, link) for s in schemes(VALUES, 2) for link in LINKS)


@pytest.mark.parametrize(("samples", "steps", "seconds"), [(16, 4, 3.6), (6, 2, 1.35), (1, 1, 0.6), (4, 1, 0.9)])
def test_a_micro_step_is_never_faster_than_the_host(samples: int, steps: int, seconds: float) -> None:
    assert RTX4090.update(samples) == (steps, pytest.approx(seconds))
    assert Computation(1.0, 0.0, 1).update(3) == (3, 3.0)


def count_job(ds_name: str) -> dict[str, Any]:
    """What this rank handed to collectives in an update of the engine."""
    engine = make_engine(init_world(0, 1), ds_name, width=WIDTH)
    with counted_collectives() as found:
        for _ in range(engine.plan.accumulation):
            engine.backward(engine.forward(rows(0)[:MICRO]))
        engine.step(0.1)
    return {"calls": dict(found.calls), "sizes": dict(found.sizes), "accumulation": engine.plan.accumulation}


@pytest.mark.process
@pytest.mark.parametrize(("ds_name", "weight_bytes"), [("zero2_cpu.json", 4), ("zero2_bf16.json", 2)])
def test_the_engine_sends_what_the_model_counts(ds_name: str, weight_bytes: int) -> None:
    assert sum(p.numel() for p in Toy(width=WIDTH).parameters()) == VALUES
    ranks = 2
    scheme = Scheme("as configured", (4 * VALUES,), (weight_bytes * VALUES,))
    for found in returned(run_ranks(ranks, count_job, ds_name)):
        assert found["accumulation"] == 3  # and one reduction
        assert found["calls"]["batch_isend_irecv"] == 1 and found["calls"]["broadcast"] == ranks
        sent = found["sizes"]["batch_isend_irecv"] + found["sizes"]["broadcast"] * (ranks - 1) / ranks
        assert sent == sent_bytes(scheme, ranks)
        assert found["sizes"]["all_reduce"] < 20  # the gradient's norm, and whether it is finite
