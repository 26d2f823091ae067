"""Watches a running rank from a thread: memory, disk, the other ranks, the launcher, and whether there is progress.

Soft limit: the run stops as after a signal, with a checkpoint. Hard limit: this rank ends at once, and the ranks beside
it with it; the reason stands in `watchdog.json` of the run folder and on standard error.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from distill.runtime.host_memory import HostReadings, disk_free, process_tree, read_memory, tree_memory
from distill.runtime.processes import ProcessId, ending
from distill.runtime.signals import FAILED, StopRequests, end_now

VERDICT_FILE = "watchdog.json"
TICK = 0.25
SOFT_READINGS = 3
"""A soft limit counts once it has been passed so many times in a row."""
PEER_GRACE = 3.0
"""Seconds that a rank has to end by itself, after another one has ended without being killed."""
LAST_WORDS = 10.0
"""Seconds that tracking gets to record a failure."""
LOW_DISK_GIB = 1.0
TREE_SECONDS = 5.0
"""Between two looks through all processes of the host."""

Phase = Literal["start", "training", "evaluation"]


@dataclass
class WatchdogConfig:
    """Limits in GiB, times in seconds; 0 switches a limit off.

    soft_available, hard_available: memory left on the host, or in the cgroup where it has a limit (null: 4 and 1.5, or
    a tenth and a twenty-fifth of all of it, if that is less). max_memory: resident memory of the run's processes on
    one host.
    gpu_free: free on any of the GPUs. disk_free: free for the run folder; below 1 GiB there is a warning in any case.
    All but hard_available are soft limits. stall, start_stall, evaluation_stall: how long nothing may move during
    training, the start and previews, before the run is given up.
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
        limits = {"start": self.start_stall, "training": self.stall, "evaluation": self.evaluation_stall}
        return limits[phase] or math.inf


@dataclass(frozen=True)
class Verdict:
    """What a limit that is passed leads to. Readings are named in `reason`."""

    level: Literal["soft", "hard"]
    reason: str


def exceeded_limit(section: WatchdogConfig, readings: HostReadings) -> Verdict | None:
    """The worst that these readings mean; None where all limits hold."""
    memory = readings.memory
    soft = min(4.0, memory.total / 10) if section.soft_available is None else section.soft_available
    hard = min(1.5, memory.total / 25) if section.hard_available is None else section.hard_available
    left = f"{memory.available:.2f} GiB of memory left of {memory.where}"
    if memory.available < hard:
        return Verdict("hard", f"{left}, less than watchdog.hard_available={hard:.3g}")
    if memory.available < soft:
        return Verdict("soft", f"{left}, less than watchdog.soft_available={soft:.3g}")
    if section.max_memory and readings.tree > section.max_memory:
        return Verdict(
            "soft", f"{readings.tree:.2f} GiB held by the run, more than watchdog.max_memory={section.max_memory:.3g}"
        )
    if readings.gpu_free is not None and readings.gpu_free < section.gpu_free:
        return Verdict(
            "soft", f"{readings.gpu_free:.2f} GiB of GPU memory free, watchdog.gpu_free={section.gpu_free:.3g}"
        )
    if readings.disk_free < section.disk_free:
        return Verdict("soft", f"{readings.disk_free:.2f} GiB of disk free, watchdog.disk_free={section.disk_free:.3g}")
    return None


@dataclass(frozen=True)
class Peer:
    """A rank, and where it runs."""

    rank: int
    host: str
    process: ProcessId | None


def same_host(peers: Sequence[Peer], rank: int) -> list[Peer]:
    """The ranks on the host of `rank`, itself among them, as far as they can be seen from here."""
    host = peers[rank].host
    return [p for p in peers if p.host == host and p.process is not None and ending(p.process) is None]


class Watchdog:
    """One rank's watchdog. peers: all ranks, in their order; gpu_free: reads GiB, None without a GPU.

    read: takes the readings; tests give their own. on_failure: what to do before an end at once (tracking, for one).
    """

    def __init__(
        self,
        section: WatchdogConfig,
        run_dir: Path,
        stop: StopRequests,
        rank: int,
        peers: Sequence[Peer],
        gpu_free: Callable[[], float] | None = None,
        read: Callable[[], HostReadings] | None = None,
    ) -> None:
        self._section, self._run_dir, self._stop, self._rank = section, run_dir, stop, rank
        self._here = same_host(peers, rank)
        self._is_first_here = all(peer.rank >= rank for peer in self._here)
        self._gpu_free = gpu_free
        self._read = read or self._readings
        self.on_failure: Callable[[], None] = lambda: None
        self._phase: Phase = "start"
        self._beats = 0
        self._soft_in_a_row = 0
        self._warned_of_disk = False
        self._latest: HostReadings | None = None
        self._tree, self._tree_read_at = 0.0, -math.inf
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        if self._section.enabled:
            self._thread.start()
        return self

    def beat(self, phase: Phase = "training") -> None:
        """There is progress, and this comes next."""
        self._phase = phase
        self._beats += 1

    def finish(self) -> None:
        """The run is over: other ranks may end from now on."""
        self._over.set()

    def metrics(self) -> dict[str, float]:
        """The newest readings, for the curves, in GiB."""
        now = self._latest or self._read()
        values = {"host_memory_available_gib": now.memory.available, "tree_rss_gib": now.tree}
        values["disk_free_gib"] = now.disk_free
        return values if now.gpu_free is None else values | {"device_memory_free_gib": now.gpu_free}

    # --- the thread ---

    def _run(self) -> None:
        ended_at: dict[int, float] = {}
        stalled, beats, last, next_look = 0.0, self._beats, time.monotonic(), 0.0
        while not self._over.wait(TICK):
            now = time.monotonic()
            self._look_at_peers(ended_at, now)
            # A process that was suspended as a whole has not stalled.
            stalled = 0.0 if self._beats != beats else stalled + min(now - last, 4 * TICK)
            beats, last = self._beats, now
            self._look_at_progress(stalled)
            if now >= next_look:
                next_look = now + self._section.interval
                self._look_at_launchers()
                if self._is_first_here:
                    self._look_at_host()

    def _look_at_peers(self, ended_at: dict[int, float], now: float) -> None:
        for peer in self._here:
            assert peer.process is not None
            how = ending(peer.process)
            if how is None or peer.rank == self._rank:
                continue
            since = ended_at.setdefault(peer.rank, now)
            if "killed" not in how and now - since < PEER_GRACE:
                continue
            if self._over.is_set():
                return
            others = [p.rank for p in self._here if p.rank not in ended_at]
            reason = f"rank {peer.rank} (process {peer.process.pid}) {how}; all ranks end"
            self._give_up(reason, tell=self._rank == min(others))

    def _look_at_progress(self, stalled: float) -> None:
        limit = self._section.stall_seconds(self._phase)
        if stalled > limit:
            faulthandler.dump_traceback(sys.__stderr__ or 2)  # where it hangs
            self._give_up(f"rank {self._rank}: no progress in {self._phase} for {limit:g} s")

    def _look_at_launchers(self) -> None:
        if any(ending(process) is not None for process in self._stop.launchers):
            self._stop.ask("the end of the launcher")

    def _look_at_host(self) -> None:
        readings = self._latest = self._read()
        verdict = exceeded_limit(self._section, readings)
        self._warn_of_disk(readings.disk_free)
        if verdict is None:
            self._soft_in_a_row = 0
        elif verdict.level == "hard":
            self._kill_all_here(verdict, readings)
        else:
            self._soft_in_a_row += 1
            if self._soft_in_a_row == SOFT_READINGS and not self._stop.reason:
                self._write(verdict, readings)
                self._stop.ask(verdict.reason)

    def _warn_of_disk(self, free: float) -> None:
        low = free < LOW_DISK_GIB
        if low and not self._warned_of_disk:
            print(f"warning: {free:.2f} GiB of disk left for {self._run_dir}", flush=True)
        self._warned_of_disk = low

    # --- what follows ---

    def _give_up(self, reason: str, tell: bool = True) -> None:
        """Ends this rank; the others see it gone. The reason is said once, by the rank that is to `tell` it."""
        if tell:
            self._write(Verdict("hard", reason), None)
        helper = threading.Thread(target=self.on_failure, daemon=True)
        helper.start()
        helper.join(LAST_WORDS)
        for process in process_tree([os.getpid()])[1:]:
            _kill(process)
        end_now(FAILED, f"error: {reason}") if tell else os._exit(FAILED)

    def _kill_all_here(self, verdict: Verdict, readings: HostReadings) -> None:
        """Memory may be gone in a moment: no good-byes. The launcher lives, and reports a killed rank as such."""
        os.write(2, f"error: {verdict.reason}; the run is killed\n".encode())
        self._write(verdict, readings)
        for process in process_tree(peer.process.pid for peer in self._here if peer.process):
            if process.pid != os.getpid():
                _kill(process)
        os._exit(FAILED)

    def _write(self, verdict: Verdict, readings: HostReadings | None) -> None:
        content: dict[str, Any] = {"time": time.time(), "rank": self._rank, **asdict(verdict)}
        if readings is not None:
            content["readings"] = asdict(readings)
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)  # the run may end before it has one
            (self._run_dir / VERDICT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:  # a full disk: the reason is said anyway
            os.write(2, f"watchdog: {VERDICT_FILE} cannot be written: {error.strerror}\n".encode())

    def _readings(self) -> HostReadings:
        now = time.monotonic()
        if now - self._tree_read_at >= TREE_SECONDS:
            self._tree = tree_memory(peer.process.pid for peer in self._here if peer.process)
            self._tree_read_at = now
        return HostReadings(
            read_memory(), self._tree, disk_free(self._run_dir), self._gpu_free() if self._gpu_free else None
        )


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
