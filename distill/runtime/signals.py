"""Signal handling, requests to stop, and exit codes. Imports are light, so that handlers are installed early.

A signal records a request to stop. All ranks agree on it at the next step boundary (distill/training/step_guard.py),
write a checkpoint, and exit with STOPPED. Before training begins, a signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from distill.runtime.processes import ProcessId, die_with_parent, find_launchers

FINISHED = 0
FAILED = 1
USAGE_ERROR = 2
"""The command, a file or a value is wrong; the same command would fail again."""
STOPPED = 75
"""EX_TEMPFAIL: stopped with everything saved; the same command continues the run."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
DUPLICATE_SIGNAL_SECONDS = 3.0
"""Signals this close together count as one: a launcher repeats what its whole process group has received."""


class StopRequests:
    """The requests to stop that this process has received, by signal or through `request`.

    A thread of its own reads the signals, so that a second one works even while the main thread waits for other ranks
    or for a device. launchers: DeepSpeed's processes above this one, as they were when the process began.
    """

    def __init__(self, launched_by: list[ProcessId] | None = None) -> None:
        self.launchers = launched_by or []
        self._reason = ""
        self._first_signal: float | None = None
        self._deferred = False
        self._lock = threading.Lock()

    @property
    def reason(self) -> str:
        """The first request ('SIGTERM', or the watchdog's reason); empty without any."""
        return self._reason

    def request(self, reason: str) -> None:
        """Asks for a stop. Only the first reason counts. Any thread may call this."""
        with self._lock:
            if self._reason:
                return
            self._reason = reason
            if not self._deferred:
                exit_now(STOPPED, f"stopped at the start by {reason}: nothing to save; continue with the same command")

    def defer_to_step_boundary(self) -> None:
        """Leaves requests from now on to the training loop; before, a request ends the process at once."""
        with self._lock:
            self._deferred = True

    def ignore_signals(self) -> None:
        """Ignores signals from now on: everything is saved, and a launcher sends SIGTERM when the first rank exits."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _caught(self, number: int, frame: object) -> None:
        """Does nothing: Python writes the signal to the wake-up pipe that `_listen` reads."""

    def _listen(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._signalled(signal.Signals(number))

    def _signalled(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            self.request(number.name)
        elif now - self._first_signal > DUPLICATE_SIGNAL_SECONDS:
            exit_now(128 + number, f"ended at once by {number.name}, the second signal")


def install_signal_handlers() -> StopRequests:
    """Handles SIGTERM, SIGINT and SIGUSR1 from now on. A second call returns the same object. Main thread only."""
    present = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(present, StopRequests):
        return present
    requests = StopRequests(find_launchers(os.getpid()))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=requests._listen, args=(reading,), name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, requests._caught)
    return requests


WORKER_SIGTERM_DELAY = 120
"""Seconds."""


def install_worker_signal_handlers() -> None:
    """For a data loader's worker: ignores signals to the whole process group, because its rank still needs batches.

    SIGTERM, with which the rank ends a worker that does not answer, works after WORKER_SIGTERM_DELAY. The worker is
    killed when its rank ends.
    """
    die_with_parent(signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_SIGTERM_DELAY))


def exit_now(code: int, message: str = "") -> NoReturn:
    """Exits from any thread, without waiting for the others; prints `message` to standard error first.

    No clean-up is needed: a checkpoint being written is a hidden temporary folder, and journals hold whole lines.
    """
    if message:
        os.write(2, f"{message}\n".encode())
    os._exit(code)


@dataclass(frozen=True)
class Stopped:
    """A run that stopped early with everything saved. reasons: with the ranks that had them, as of `summarize_reasons`.
    checkpoint: None where there was nothing new to save."""

    update: int
    reasons: str
    checkpoint: Path | None

    def __str__(self) -> str:
        saved = f"checkpoint {self.checkpoint}" if self.checkpoint else "nothing new to save"
        return f"stopped at update {self.update} by {self.reasons}: {saved}; continue with the same command"


def summarize_reasons(reasons: list[str]) -> str:
    """One phrase for the reasons of all ranks: ['', 'SIGUSR1'] -> 'SIGUSR1 (rank 1)'. No ranks where all agree."""
    ranks: dict[str, list[str]] = {}
    for rank, reason in enumerate(reasons):
        if reason:
            ranks.setdefault(reason, []).append(str(rank))
    everybody = len(reasons)
    return " and ".join(
        reason if len(who) == everybody else f"{reason} (rank {', '.join(who)})" for reason, who in ranks.items()
    )
