"""Watches a running rank from a thread: memory, disk, the other ranks, the launcher and progress.

A soft limit stops the run as a signal does, with a checkpoint. A hard limit, a lost rank or a stall ends it at once.
The reason is written to `watchdog.json` in the run folder and to standard error.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import psutil

from distill.runtime.host_memory import HostResources, process_tree, resource_reader
from distill.runtime.processes import ProcessId, describe_exit
from distill.runtime.signals import FAILED, StopRequests, exit_now

REPORT_FILE = "watchdog.json"
POLL_SECONDS = 0.25
CONSECUTIVE_READINGS = 3
"""A soft limit stops the run when this many readings in a row exceed it."""
PEER_EXIT_SECONDS = 3.0
"""How long a rank may outlive another one that was not killed: it may be about to end for the same reason."""
ON_FAILURE_SECONDS = 10.0
"""How long `Watchdog.on_failure` may take."""
LOW_DISK_GIB = 1.0

Phase = Literal["start", "training", "evaluation"]


@dataclass
class WatchdogConfig:
    """Limits in GiB, times in seconds; 0 switches a limit off.

    soft_available, hard_available: memory left on the host, or in the cgroup where it has a limit (null: 4 and 1.5, or
    a tenth and a twenty-fifth of all of it, if that is less). max_memory: resident memory of the run's processes on
    one host.
    gpu_free: free on any of the GPUs. disk_free: free for the run folder; below 1 GiB there is a warning in any case.
    All but hard_available are soft limits. stall, start_stall, evaluation_stall: the longest time without progress in
    training, at the start and in previews. interval: between two readings.
    """

    enabled: bool = True
    interval: float = 1.0
    soft_available: float | None = None
    hard_available: float | None = None
    max_memory: float = 0.0
    gpu_free: float = 0.0
    disk_free: float = 0.0
    stall: float = 1800.0
    start_stall: float = 7200.0
    evaluation_stall: float = 7200.0

    def __post_init__(self) -> None:
        if not self.interval > 0:
            raise ValueError(f"watchdog.interval={self.interval} must be above 0 (seconds)")
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"watchdog.{name}={value} must be a number of at least 0; 0 switches it off")

    def stall_seconds(self, phase: Phase) -> float:
        """The longest time without progress; 0: no limit."""
        return {"start": self.start_stall, "training": self.stall, "evaluation": self.evaluation_stall}[phase]


@dataclass(frozen=True)
class Alert:
    """Why a run must stop. soft: with a checkpoint; hard: at once."""

    level: Literal["soft", "hard"]
    reason: str


def exceeded_limit(config: WatchdogConfig, now: HostResources) -> Alert | None:
    """The first limit that is exceeded, the hard one before all others; None where all limits hold."""
    memory, disk, gpu = now.memory, now.disk_free, math.inf if now.gpu_free is None else now.gpu_free
    soft = min(4.0, memory.total / 10) if config.soft_available is None else config.soft_available
    hard = min(1.5, memory.total / 25) if config.hard_available is None else config.hard_available
    left = f"{memory.available:.2f} GiB of memory left of {memory.where}, less than watchdog."
    if memory.available < hard:
        return Alert("hard", f"{left}hard_available={hard:.3g}")
    soft_limits = (
        (memory.available < soft, f"{left}soft_available={soft:.3g}"),
        (
            0 < config.max_memory < now.tree,
            f"{now.tree:.2f} GiB held by the run, more than watchdog.max_memory={config.max_memory:.3g}",
        ),
        (gpu < config.gpu_free, f"{gpu:.2f} GiB of GPU memory free, watchdog.gpu_free={config.gpu_free:.3g}"),
        (disk < config.disk_free, f"{disk:.2f} GiB of disk free, watchdog.disk_free={config.disk_free:.3g}"),
    )
    return next((Alert("soft", reason) for exceeded, reason in soft_limits if exceeded), None)


@dataclass(frozen=True)
class Peer:
    """A rank, and where it runs."""

    rank: int
    host: str
    process: ProcessId | None


class Watchdog:
    """One rank's watchdog; the first rank of a host also watches the host's memory and disk.

    peers: all ranks, in their order. gpu_free: returns GiB; None without a GPU. read: replaces the readings in tests.
    on_failure: called before a lost rank or a stall ends this process.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        run_dir: Path,
        stop: StopRequests,
        rank: int,
        peers: Sequence[Peer],
        gpu_free: Callable[[], float] | None = None,
        read: Callable[[], HostResources] | None = None,
    ) -> None:
        self._config, self._run_dir, self._stop, self._rank = config, run_dir, stop, rank
        # The ranks of this host, this one among them, as far as they are visible from here.
        self._local = {
            peer.rank: peer.process
            for peer in peers
            if peer.host == peers[rank].host and peer.process is not None and describe_exit(peer.process) is None
        }
        self._read = read or resource_reader([process.pid for process in self._local.values()], run_dir, gpu_free)
        self.on_failure: Callable[[], None] = lambda: None
        self._phase: Phase = "start"
        self._latest: HostResources | None = None
        self._consecutive = 0
        self._gone_since: dict[int, float] = {}
        self._progress, self._finished = threading.Event(), threading.Event()

    def start(self) -> Watchdog:
        if self._config.enabled:
            threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def heartbeat(self, phase: Phase = "training") -> None:
        """Reports progress, and the phase that begins or goes on now."""
        self._progress.set()  # before the phase, whose limit may be the shorter one
        self._phase = phase

    def finish(self) -> None:
        """Ends the watch: from now on other ranks may exit."""
        self._finished.set()

    def metrics(self) -> dict[str, float]:
        """The newest readings in GiB, as metrics."""
        now = self._latest or self._read()
        values = {
            "host_memory_available_gib": now.memory.available,
            "tree_rss_gib": now.tree,
            "disk_free_gib": now.disk_free,
            "device_memory_free_gib": now.gpu_free,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _run(self) -> None:
        without_progress, next_reading = 0.0, 0.0
        while not self._finished.wait(POLL_SECONDS):
            self._check_peers()
            # Polls are counted instead of seconds, so that time in which the process was suspended is no stall.
            # faulthandler.dump_traceback_later would count it, and exit without the reason.
            without_progress += POLL_SECONDS
            if self._progress.is_set():
                self._progress.clear()
                without_progress = 0.0
            self._check_progress(without_progress)
            if time.monotonic() >= next_reading:
                next_reading = time.monotonic() + self._config.interval
                if any(describe_exit(launcher) for launcher in self._stop.launchers):
                    self._stop.request("the end of the launcher")
                if self._rank == min(self._local, default=self._rank):
                    self._check_host()

    def _check_peers(self) -> None:
        now = time.monotonic()
        for rank, process in self._local.items():
            how = describe_exit(process)
            if how is None:
                continue
            waited = now - self._gone_since.setdefault(rank, now)
            if ("killed" in how or waited >= PEER_EXIT_SECONDS) and not self._finished.is_set():
                reason = f"rank {rank} (process {process.pid}) {how}; all ranks end"
                # Once for all: by the first rank that is left.
                self._give_up(reason, report=self._rank == min(self._local.keys() - self._gone_since.keys()))

    def _check_progress(self, without_progress: float) -> None:
        limit = self._config.stall_seconds(self._phase)
        if 0 < limit < without_progress:
            faulthandler.dump_traceback(file=2)
            self._give_up(f"rank {self._rank}: no progress in {self._phase} for {limit:g} s")

    def _check_host(self) -> None:
        before, now = self._latest, self._read()
        self._latest = now
        if now.disk_free < LOW_DISK_GIB and (before is None or before.disk_free >= LOW_DISK_GIB):
            print(f"warning: {now.disk_free:.2f} GiB of disk left for {self._run_dir}", flush=True)
        alert = exceeded_limit(self._config, now)
        self._consecutive = self._consecutive + 1 if alert else 0
        if alert and alert.level == "hard":  # without on_failure: memory may be gone in a moment
            self._report(alert, now)
            ranks = [process.pid for process in self._local.values()]
            _kill_and_exit(ranks, f"error: {alert.reason}; the run is killed")
        if alert and self._consecutive >= CONSECUTIVE_READINGS and not self._stop.reason:
            self._report(alert, now)
            self._stop.request(alert.reason)

    def _give_up(self, reason: str, report: bool = True) -> NoReturn:
        """Ends this process and its workers; the other ranks then see it gone."""
        if report:
            self._report(Alert("hard", reason))
        on_failure = threading.Thread(target=self.on_failure, daemon=True)
        on_failure.start()
        on_failure.join(ON_FAILURE_SECONDS)
        _kill_and_exit([os.getpid()], f"error: {reason}" if report else "")

    def _report(self, alert: Alert, now: HostResources | None = None) -> None:
        content: dict[str, Any] = {"time": time.time(), "rank": self._rank, **asdict(alert)}
        if now is not None:
            content["readings"] = asdict(now)
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)  # the run may end before it has one
            (self._run_dir / REPORT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:  # a full disk: standard error tells the reason
            os.write(2, f"watchdog: {REPORT_FILE} cannot be written: {error.strerror}\n".encode())


def _kill_and_exit(pids: Iterable[int], message: str) -> NoReturn:
    """Kills these processes and their descendants, then exits; a launcher reports a killed rank as such."""
    for process in process_tree(pids):
        with suppress(psutil.NoSuchProcess):
            if process.pid != os.getpid():
                process.kill()
    exit_now(FAILED, message)
