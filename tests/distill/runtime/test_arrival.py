"""Ranks that never arrive at the rendezvous are named, with the place where they are waited for."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from datetime import timedelta
from functools import partial

import pytest

from distill.runtime import arrival
from distill.runtime.arrival import report_missing_ranks, waiting_line
from distill.runtime.rendezvous import Rendezvous
from distill.runtime.signals import FAILED
from launch import train
from tests.helpers.paths import ROOT
from tests.helpers.processes.ports import free_port
from tests.helpers.processes.ranks import RankResult, all_output, returned, run_ranks

HOST = socket.gethostname()
HERE = Rendezvous(rank=0, local_rank=0, size=4, local_size=2, master_addr="node1", master_port=29500)


def test_the_line_names_who_is_missing_who_is_there_and_where() -> None:
    line = waiting_line(HERE, {0: "node1", 2: "node2"}, 15.0)
    assert line.startswith("rank 0 has waited 15 s at node1:29500 for rank 1, 3 of 4 (arrived: 0 on node1, 2 on node2)")
    line = waiting_line(Rendezvous(2, 0, 4, 2, "node1", 29500), {}, 15.0)
    assert f"rank 2 on {HOST} has waited 15 s for rank 0 at node1:29500, where nobody answers" in line


def test_a_single_rank_waits_for_nobody() -> None:
    with report_missing_ranks(Rendezvous(0, 0, 1, 1, "127.0.0.1", 0), after=0.0, say=pytest.fail):
        time.sleep(0.05)


@pytest.mark.parametrize(("rank", "local_rank", "speaks"), [(1, 1, True), (2, 2, False), (4, 0, True), (5, 1, False)])
def test_one_rank_of_each_host_says_that_rank_0_does_not_answer(rank: int, local_rank: int, speaks: bool) -> None:
    said: list[str] = []
    with report_missing_ranks(Rendezvous(rank, local_rank, 8, 4, "127.0.0.1", free_port()), 0.1, said.append):
        time.sleep(0.6)
    assert len(said) == speaks


# --- real ranks ---


def start(absent: list[str], seconds: float) -> None:
    """The command, on ranks that arrive; PyTorch gives up after three seconds."""
    import deepspeed

    if os.environ["RANK"] in absent:
        return
    arrival.PATIENCE = seconds
    deepspeed.init_distributed = partial(deepspeed.init_distributed, timeout=timedelta(seconds=3))
    sys.exit(train.main(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json")]))


def errors(result: RankResult) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith(("rank ", "error: ", "Traceback"))]


@pytest.mark.process
def test_a_rank_that_never_arrives_is_named_and_then_given_up() -> None:
    first, _, third = results = run_ranks(3, start, ["1"], 0.5)
    waiting, error = errors(first)
    address = waiting.split(" at ")[1].split(" ")[0]
    assert address.startswith("127.0.0.1:")
    assert f"0.5 s at {address} for rank 1 of 3 (arrived: 0 on {HOST}, 2 on {HOST})" in waiting
    assert error.startswith("error: rank 0 has not met another rank: Timed out") and first.exit_code == FAILED
    assert third.exit_code == FAILED and len(errors(third)) == 1, all_output(results)


def meet() -> bool:
    """Whether the watching thread has ended, without a line, once the ranks have met."""
    from distill.training.engine import init_world

    arrival.PATIENCE = 100.0
    init_world(0, 1)
    watching = [thread for thread in threading.enumerate() if thread.name == "rendezvous"]
    for thread in watching:
        thread.join(50.0)
    return not any(thread.is_alive() for thread in watching)


@pytest.mark.process
def test_ranks_that_meet_say_nothing() -> None:
    results = run_ranks(2, meet)
    assert returned(results) == [True, True] and all(errors(result) == [] for result in results)
