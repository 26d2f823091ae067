"""Real ranks on one machine: processes that find each other over gloo, with what they printed and returned.

They are forked from a server process that has imported torch and DeepSpeed once, which makes a rank start in
milliseconds; the environment variables are those that a launcher sets.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests.helpers.processes.ports import free_port

PRELOAD = ["tests.helpers.processes.preload"]
CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
SERVER = CPU_ONLY | {"TORCH_WARM_POOL": "0"}  # no processes that compile: a rank needs none, and is forked


@dataclass(frozen=True)
class RankResult:
    """What one rank left behind. value: what its function returned, None where it did not return."""

    exit_code: int
    stdout: str
    stderr: str
    value: Any


class Started:
    """Ranks that are running; `wait` for them."""

    def __init__(self, world: int, function: Callable[..., Any], args: Sequence[Any]) -> None:
        context, port = _server(), free_port()
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name)
        self._processes = [
            context.Process(target=_rank, args=(self._path, rank, world, port, function, args)) for rank in range(world)
        ]
        for process in self._processes:
            process.start()

    def pids(self) -> list[int]:
        """Of the ranks that are still running."""
        return [process.pid for process in self._processes if process.is_alive() and process.pid is not None]

    def wait(self, timeout: float = 240.0) -> list[RankResult]:
        """What they left behind. Raises TimeoutError, after ending them, where one needs over `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process in self._processes if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        results = [_result(self._path, rank, process.exitcode) for rank, process in enumerate(self._processes)]
        self._folder.cleanup()
        if late:
            raise TimeoutError(
                f"{len(late)} of {len(results)} ranks still ran after {timeout} s\n{all_output(results)}"
            )
        return results


def start_ranks(world: int, function: Callable[..., Any], *args: Any) -> Started:
    """Calls `function(*args)`, which must be importable, in `world` processes at once."""
    return Started(world, function, args)


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[RankResult]:
    """Calls `function(*args)`, which must be importable, in `world` processes, and waits for them."""
    return start_ranks(world, function, *args).wait()


def returned(results: Sequence[RankResult]) -> list[Any]:
    """Every rank's return value, after a check that none failed."""
    assert all(result.exit_code == 0 for result in results), all_output(results)
    return [result.value for result in results]


def all_output(results: Sequence[RankResult]) -> str:
    """Everything that the ranks printed, for a failure's message."""
    return "\n".join(f"--- rank {i}: exit code {r.exit_code}\n{r.stdout}{r.stderr}" for i, r in enumerate(results))


def _server() -> multiprocessing.context.ForkServerContext:
    """The fork server, started without a sight of a GPU: there the same tests run on the CPU too."""
    before = {name: os.environ.get(name) for name in SERVER}
    os.environ.update(SERVER)
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _rank(folder: Path, rank: int, world: int, port: int, function: Callable[..., Any], args: Sequence[Any]) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        sink = os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(sink, number)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    value = function(*args)
    sys.stdout.flush()
    (folder / f"value-{rank}").write_bytes(pickle.dumps(value))


def _result(folder: Path, rank: int, exit_code: int | None) -> RankResult:
    def text(name: str) -> str:
        path = folder / f"{name}-{rank}"
        return path.read_text(errors="replace") if path.exists() else ""

    value = folder / f"value-{rank}"
    return RankResult(
        -1 if exit_code is None else exit_code,
        text("stdout"),
        text("stderr"),
        pickle.loads(value.read_bytes()) if value.exists() else None,
    )
