"""Why and how a run ends early. Imports nothing that takes time: signals are heard from the first moment on.

A signal only notes the wish to stop. All ranks agree at the next step boundary (distill/training/step_guard.py), write
a checkpoint, and end with STOPPED. Until there is something to save, a signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from distill.runtime.processes import ProcessId, die_with_parent, launchers

FINISHED = 0
FAILED = 1
USAGE_ERROR = 2
"""The command, a file or a value is wrong: the same command would fail again."""
STOPPED = 75
"""EX_TEMPFAIL: stopped in good order; the same command goes on from there."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 3.0
"""A launcher repeats what its whole process group has received; signals this close together are one wish."""


class StopRequests:
    """The wishes to stop that reached this process, by signal or through `ask`.

    Signals are read in a thread of their own, so that a main thread that waits for other ranks, or for a device, does
    not delay the answer to the second one. launchers: the processes above this one, as they were at the beginning.
    """

    def __init__(self, launched_by: list[ProcessId] | None = None) -> None:
        self.launchers = launched_by or []
        self._reason = ""
        self._first_signal: float | None = None
        self._has_something_to_save = False
        self._lock = threading.Lock()

    @property
    def reason(self) -> str:
        """The first wish ('SIGTERM', or a sentence of the watchdog's); empty as long as there is none."""
        return self._reason

    def ask(self, reason: str) -> None:
        """Wishes for an orderly stop. Only the first reason counts; any thread may call."""
        with self._lock:
            if self._reason:
                return
            self._reason = reason
            if not self._has_something_to_save:
                end_now(STOPPED, f"stopped at the start by {reason}: nothing to save; continue with the same command")

    def wait_for_a_boundary(self) -> None:
        """From now on a wish is answered where all ranks meet, and no longer at once."""
        with self._lock:
            self._has_something_to_save = True

    def ignore(self) -> None:
        """Deaf from now on: everything is saved, and the launcher ends ranks by SIGTERM as soon as one has ended."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _caught(self, number: int, frame: object) -> None:
        """Does nothing: a signal with a handler is written to the pipe that `_listen` reads."""

    def _listen(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._signalled(signal.Signals(number))

    def _signalled(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            self.ask(number.name)
        elif now - self._first_signal > SAME_REQUEST_SECONDS:
            end_now(128 + number, f"ended at once by {number.name}, the second signal")


def install_signal_handlers() -> StopRequests:
    """Hears SIGTERM, SIGINT and SIGUSR1 from now on. Called again, it returns the same object. Main thread only."""
    present = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(present, StopRequests):
        return present
    requests = StopRequests(launchers(os.getpid()))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=requests._listen, args=(reading,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, requests._caught)
    return requests


OUTLIVE_SECONDS = 120


def outlive_signals() -> None:
    """For a process that serves this one (a loader's worker): what the whole group receives is its parent's business.

    SIGTERM, with which the parent ends a worker that does not answer, works after OUTLIVE_SECONDS; should the parent be
    killed, this process is too.
    """
    die_with_parent(signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(OUTLIVE_SECONDS))


def end_now(code: int, line: str) -> NoReturn:
    """Ends this process from any thread, whatever the others wait for; `line` is its last word.

    Nothing is cleaned up: a checkpoint being written is a hidden temporary folder, and journals hold whole lines.
    """
    os.write(2, f"{line}\n".encode())
    os._exit(code)


@dataclass(frozen=True)
class Stopped:
    """A run that ended early in good order. reasons: each with the ranks that had it; checkpoint: None where there was
    nothing new to save."""

    update: int
    reasons: str
    checkpoint: Path | None

    def __str__(self) -> str:
        saved = f"checkpoint {self.checkpoint}" if self.checkpoint else "nothing new to save"
        return f"stopped at update {self.update} by {self.reasons}: {saved}; continue with the same command"


def summary(reasons: list[str]) -> str:
    """What each rank was asked by, in one phrase: ['', 'SIGUSR1'] -> 'SIGUSR1 (rank 1)'; no rank where all agree."""
    ranks: dict[str, list[str]] = {}
    for rank, reason in enumerate(reasons):
        if reason:
            ranks.setdefault(reason, []).append(str(rank))
    everybody = len(reasons)
    return " and ".join(
        reason if len(who) == everybody else f"{reason} (rank {', '.join(who)})" for reason, who in ranks.items()
    )
