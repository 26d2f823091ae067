"""Who sends: one process for each run folder at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

LOCK = ".tracking.lock"


class UploadLock:
    """A lock on a run folder's way to MLflow, which the system takes back when the process ends, however it ends.

    A record lock and not flock: processes that this one forks (data workers) do not inherit it, so a killed run leaves
    nothing behind. Where the file system has no locks, everybody gets it: MLflow ignores what it is told twice.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Whether this process has the lock now; does not wait."""
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # read-only or full: no other process of ours could write here either
            return True
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        self._descriptor = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:  # a full disk: the name of the holder is only for people
            pass
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """`pid N on HOST`, of whoever took the lock last."""
        try:
            return self._path.read_text(encoding="utf-8").strip() or "another process"
        except OSError:
            return "another process"
