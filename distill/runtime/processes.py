"""Identifies processes of this host through /proc, and tells whether and how they have ended. Imports are light.

A process id may be used again; the start time tells the two processes apart.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LAUNCHER_MODULE = "deepspeed.launcher.launch"
RUNNER_COMMANDS = ("deepspeed", "ds", "deepspeed.launcher.runner")


@dataclass(frozen=True)
class ProcessId:
    """A process. start: when it started, in clock ticks since boot (changes of the clock do not alter it)."""

    pid: int
    start: int


@dataclass(frozen=True)
class ProcessState:
    """What /proc/PID/stat says. state: a letter as in ps; Z: ended and not waited for. wait_status: as of os.wait; 0
    while the process runs, and where this user may not read it."""

    state: str
    parent: int
    start: int
    wait_status: int


def read_process_state(pid: int, proc: Path = PROC) -> ProcessState | None:
    """The state of a process; None where there is no such process, or no /proc."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 1 :].split()  # the command before it may contain spaces and parentheses
    return ProcessState(fields[0], int(fields[1]), int(fields[19]), int(fields[49]))


def identify(pid: int) -> ProcessId | None:
    """The process that has this id now; None where there is none, or no /proc."""
    state = read_process_state(pid)
    return None if state is None else ProcessId(pid, state.start)


def describe_exit(process: ProcessId) -> str | None:
    """How the process has ended, as far as that can still be read; None while it runs.

    'was killed by SIGKILL', 'has ended with exit code 1' or 'has ended'.
    """
    found = read_process_state(process.pid)
    if found is None or found.start != process.start:
        return "has ended"
    if found.state not in "ZX":
        return None
    if number := found.wait_status & 0x7F:
        return f"was killed by {signal.Signals(number).name}"
    code = found.wait_status >> 8
    return f"has ended with exit code {code}" if code else "has ended"


def find_launchers(pid: int) -> list[ProcessId]:
    """DeepSpeed's launcher, where it is the parent of process `pid`, and the `deepspeed` command above that.

    They do not forward every signal, so that a rank may have to learn of one from their end.
    """
    state = read_process_state(pid)
    launcher = state and identify(state.parent)
    if not state or not launcher or LAUNCHER_MODULE not in _arguments(launcher.pid):
        return []
    above = read_process_state(launcher.pid)
    runner = above and identify(above.parent)
    is_runner = runner and any(Path(word).name in RUNNER_COMMANDS for word in _arguments(runner.pid)[:3])
    return [launcher, runner] if runner and is_runner else [launcher]


def die_with_parent(number: int) -> None:
    """Lets the kernel send signal `number` to this process when the thread that started it ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process (a child subreaper, prctl(2)). Linux only."""
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
