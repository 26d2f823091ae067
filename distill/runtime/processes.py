"""Who else belongs to this run on this host, and whether it still lives: read from /proc, without any import that costs
time. A process is told from a later one with the same number by when it started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LAUNCHER = "deepspeed.launcher.launch"
RUNNERS = ("deepspeed", "ds", "deepspeed.launcher.runner")


@dataclass(frozen=True)
class ProcessId:
    """start: clock ticks since boot, which no change of the clock alters."""

    pid: int
    start: int


@dataclass(frozen=True)
class ProcessState:
    """letter: R, S, D, T, Z (ended, and nobody has asked for its result yet), X. result: as wait() gives it; 0 while it
    runs, and where it may not be read."""

    letter: str
    parent: int
    start: int
    result: int


def read_state(pid: int, proc: Path = PROC) -> ProcessState | None:
    """None where there is no such process, or no /proc."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 1 :].split()  # the name before it may hold anything
    return ProcessState(fields[0], int(fields[1]), int(fields[19]), int(fields[49]))


def identify(pid: int) -> ProcessId | None:
    state = read_state(pid)
    return None if state is None else ProcessId(pid, state.start)


def ending(process: ProcessId) -> str | None:
    """None while it lives; else how it ended, where that can still be read: 'was killed by SIGKILL', 'has ended'."""
    state = read_state(process.pid)
    if state is None or state.start != process.start:
        return "has ended"
    if state.letter not in "ZX":
        return None
    if number := state.result & 0x7F:
        return f"was killed by {signal.Signals(number).name}"
    return f"has ended with exit code {state.result >> 8}" if state.result >> 8 else "has ended"


def launchers(pid: int) -> list[ProcessId]:
    """DeepSpeed's launcher above process `pid`, and the `deepspeed` command above that, as far as they are there.

    DeepSpeed's commands do not hand every signal on: their end is how this process learns of it.
    """
    state = read_state(pid)
    launcher = state and identify(state.parent)
    if not state or not launcher or LAUNCHER not in _arguments(launcher.pid):
        return []
    above = read_state(launcher.pid)
    runner = above and identify(above.parent)
    is_runner = runner and any(Path(word).name in RUNNERS for word in _arguments(runner.pid)[:3])
    return [launcher, runner] if runner and is_runner else [launcher]


def die_with_parent(number: int) -> None:
    """From now on this process gets signal `number` when the thread that has started it ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """From now on what descends from this process becomes its child when its parent ends. Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _arguments(pid: int) -> list[str]:
    try:
        return os.fsdecode((PROC / str(pid) / "cmdline").read_bytes()).split("\0")
    except OSError:
        return []
