"""Says which ranks a run waits for when they do not all arrive at the rendezvous.

PyTorch waits half an hour for them without a word. Beside it, each rank puts its name into the same store, and rank 0
looks who is there.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from distill.runtime.rendezvous import Rendezvous

PATIENCE = 15.0
"""Seconds of waiting after which it is said for whom."""
_POLL, _CALL = 0.2, timedelta(seconds=10)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def report_missing_ranks(
    here: Rendezvous, after: float | None = None, say: Callable[[str], None] = _print
) -> Iterator[None]:
    """Inside, where the process group is made: a line after `after` seconds (default: `PATIENCE`) of waiting."""
    if here.size == 1:
        yield
        return
    met = threading.Event()
    seconds = PATIENCE if after is None else after
    threading.Thread(target=_watch, args=(here, seconds, met, say), name="rendezvous", daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _watch(here: Rendezvous, seconds: float, met: threading.Event, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + seconds
    while not _somebody_listens(here) and not met.wait(_POLL):
        if time.monotonic() > deadline:
            # Of each host one rank: rank 0 is the one that is missing.
            if here.local_rank == (1 if here.rank == here.local_rank else 0):
                say(waiting_line(here, {}, seconds))
            return
    try:
        store = dist.TCPStore(
            here.master_addr, here.master_port, is_master=False, wait_for_workers=False, timeout=_CALL
        )
        store.set(_key(here.rank), socket.gethostname())
        if met.wait(max(0.0, deadline - time.monotonic())) or here.rank != 0:
            return
        arrived = {rank: store.get(_key(rank)).decode() for rank in range(here.size) if store.check([_key(rank)])}
        if len(arrived) < here.size:
            say(waiting_line(here, arrived, seconds))
    except dist.DistError:  # what listens there is another program, or has ended: PyTorch's own call reports it
        return


def _somebody_listens(here: Rendezvous) -> bool:
    """Tried first, because a store that cannot connect prints its C++ frames."""
    try:
        with socket.create_connection((here.master_addr, here.master_port), timeout=1.0):
            return True
    except OSError:
        return False


def _key(rank: int) -> str:
    return f"arrived/{rank}"


def waiting_line(here: Rendezvous, arrived: Mapping[int, str], seconds: float) -> str:
    """What is said after `seconds`. arrived: the hosts of the ranks that are there; empty where rank 0 is not."""
    where = f"{here.master_addr}:{here.master_port}"
    if not arrived:
        return (
            f"rank {here.rank} on {socket.gethostname()} has waited {seconds:g} s for rank 0 at {where}, where nobody "
            "answers: check that it runs, and that MASTER_ADDR and MASTER_PORT are the same for all ranks"
        )
    missing = ", ".join(str(rank) for rank in range(here.size) if rank not in arrived)
    there = ", ".join(f"{rank} on {host}" for rank, host in arrived.items())
    return (
        f"rank {here.rank} has waited {seconds:g} s at {where} for rank {missing} of {here.size} (arrived: {there}): "
        "check that it was started and can reach this address"
    )
