"""Reads the memory and disk space of this host in GiB, for the watchdog and launch/oom_guard.py. Imports psutil only.

A cgroup's limit (SLURM, a container) counts like the host's own: the available memory is the least of all of them.
Inactive file pages count as available, because the kernel frees them first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
CGROUP_ROOT = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")
TREE_SECONDS = 5.0
"""How often `resource_reader` walks the processes of the host, which takes tens of milliseconds on a large one."""


@dataclass(frozen=True)
class Memory:
    """Available and total memory in GiB. where: 'the host', or the cgroup with the least available."""

    available: float
    total: float
    where: str = "the host"


@dataclass(frozen=True)
class HostResources:
    """What the watchdog reads, in GiB. tree: resident memory of the run's processes on this host; a page that several
    share counts once for each. gpu_free: None without a GPU."""

    memory: Memory
    tree: float
    disk_free: float
    gpu_free: float | None = None


def resource_reader(
    pids: Sequence[int], folder: Path, gpu_free: Callable[[], float] | None = None
) -> Callable[[], HostResources]:
    """Returns a function that reads the resources. pids: the run's ranks on this host. folder: whose disk counts.
    gpu_free: returns GiB; None without a GPU."""
    tree, tree_read_at = 0.0, -math.inf

    def read() -> HostResources:
        nonlocal tree, tree_read_at
        if time.monotonic() - tree_read_at >= TREE_SECONDS:
            tree, tree_read_at = tree_memory(pids), time.monotonic()
        return HostResources(read_memory(), tree, disk_free(folder), gpu_free() if gpu_free else None)

    return read


def read_memory(mounted: Path = CGROUP_ROOT, own: Path = SELF_CGROUP) -> Memory:
    """The memory of the host, or of the cgroup of this process that has less available."""
    host = psutil.virtual_memory()
    found = [Memory(host.available / GIB, host.total / GIB), *_cgroups(mounted, own)]
    return min(found, key=lambda memory: memory.available)


def _cgroups(mounted: Path, own: Path) -> Iterable[Memory]:
    """The memory of every cgroup of this process that has a limit, innermost first."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits(mounted, path, ("memory.max", "memory.current", "inactive_file"))
            yield from _limits(mounted / "unified", path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(mounted / "memory", path, names)


def _limits(root: Path, path: str, names: tuple[str, str, str]) -> Iterable[Memory]:
    limit_name, usage_name, inactive_name = names
    folder = root / path.strip("/")
    # Inside a container the path may be the host's, of which only the root is mounted.
    folders = [folder, *folder.parents] if ".." not in folder.parts else [root]
    for place in folders:
        limit = _number(place / limit_name)
        usage = _number(place / usage_name)
        if limit is not None and usage is not None and limit < psutil.virtual_memory().total:
            used = usage - _entry(place / "memory.stat", inactive_name)
            yield Memory((limit - used) / GIB, limit / GIB, f"the cgroup {place}")
        if place == root:
            return


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file or it says 'max'."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _entry(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(value) for key, value in map(str.split, lines) if key == name), 0)


def process_tree(roots: Iterable[int]) -> list[psutil.Process]:
    """The processes with these ids and all their descendants, each once, without those that have ended."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            root = psutil.Process(pid)
            found |= {process.pid: process for process in (root, *root.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def tree_memory(roots: Iterable[int]) -> float:
    """Resident memory of `process_tree` in GiB."""
    return sum(_resident(process) for process in process_tree(roots)) / GIB


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended since, or turned into another user's
        return 0


def disk_free(folder: Path) -> float:
    """Disk space in GiB that this user may still use where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return float(psutil.disk_usage(str(place)).free) / GIB
