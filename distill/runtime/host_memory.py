"""Memory and disk of this host, in GiB, as the watchdog and launch/oom_guard.py look at them. Needs psutil only.

A cgroup's limit (SLURM, a container) counts like the host's own: what is available is the least of all of them. Pages
of files that nobody has used lately count as available, because the kernel gives them up first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Memory:
    """available and total in GiB, of `where`: 'the host', or the cgroup that leaves the least."""

    available: float
    total: float
    where: str = "the host"


@dataclass(frozen=True)
class HostReadings:
    """What is watched. tree: resident memory of the run's processes on this host, pages that they share counted once
    for each; gpu_free: None without a GPU. All in GiB."""

    memory: Memory
    tree: float
    disk_free: float
    gpu_free: float | None = None


def read_memory(mounted: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Memory:
    """The host's, or that of the cgroup above this process that has less left."""
    host = psutil.virtual_memory()
    found = [Memory(host.available / GIB, host.total / GIB), *_cgroups(mounted, own)]
    return min(found, key=lambda memory: memory.available)


def _cgroups(mounted: Path, own: Path) -> Iterable[Memory]:
    """Every limit that holds for this process, its own cgroup's first. Limits that are not set are left out."""
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
    """None where there is no such file, or it says 'max'."""
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
    """The processes with these numbers and everything below them, each once; those that have gone are left out."""
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
    """GiB that this user may still write where `folder` is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return float(psutil.disk_usage(str(place)).free) / GIB
