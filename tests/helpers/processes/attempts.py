"""Trainings that are running and may be killed: what the torture starts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from tests.helpers.paths import ROOT


class Attempt(Protocol):
    """A training that is running. ranks: their process ids, as far as they are there."""

    launcher: int | None

    def ranks(self) -> list[int]: ...

    def has_ended(self) -> bool: ...

    def finish(self) -> tuple[int, str]:
        """The exit code and what was printed, once it has ended."""


class Launched:
    """Through `deepspeed`, as users start it."""

    def __init__(self, world: int, argv: Sequence[str], log: Path) -> None:
        binary = Path(sys.executable).parent / "deepspeed"
        port = 20000 + random.SystemRandom().randrange(10000)
        launcher = [str(binary), "--num_gpus", str(world), "--master_port", str(port)]
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [*launcher, str(ROOT / "launch" / "train.py"), *argv],
                stdout=out, stderr=out, start_new_session=True, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        self.launcher: int | None = self._process.pid
        self._seen: dict[int, psutil.Process] = {}

    def _all(self) -> list[psutil.Process]:
        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self._seen |= {process.pid: process for process in family}
        return [process for process in self._seen.values() if _runs(process)]

    def ranks(self) -> list[int]:
        return [process.pid for process in self._all() if _is_rank(process)]

    def has_ended(self) -> bool:
        return self._process.poll() is not None and not self._all()

    def finish(self) -> tuple[int, str]:
        return self._process.wait(), self._log.read_text(errors="replace")


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_rank(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("--local_rank") for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def notes_its_launcher(pid: int) -> bool:
    """A rank that catches signals has noted who started it. True for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = text.partition("SigCgt:")[2].split()
    return not caught or bool(int(caught[0], 16) >> (signal.SIGUSR1 - 1) & 1)


Start = Callable[[int, Sequence[str], Path], Attempt]
