"""A lock on a run folder, so that no two runs share it. The operating system releases it when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

LOCK = ".lock"


class RunLock:
    """Holds `run_dir/.lock` until `release`, or until this process is gone.

    A record lock (fcntl) and not flock: worker processes, which may outlive a killed run by seconds, do not inherit it,
    and network file systems know it. Other code of this process must not open the file: closing it would give the lock
    back.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None] = print) -> None:
        """Makes the folder where there is none. Raises ValueError where another process holds the lock, naming it, or
        where the folder cannot be written."""
        path = run_dir / LOCK
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{run_dir}: cannot be written ({error.strerror}); choose another run_root=...") from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                say(f"warning: {path}: no lock on this file system ({error.strerror}); start no second run in it")
                return
            self._file.seek(0)
            holder = self._file.read(200).strip() or "another process"
            self._file.close()
            raise ValueError(
                f"{run_dir}: in use by {holder}; wait for that run, stop it, or choose another name=..."
            ) from error
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        except OSError as error:  # a full disk: the lock holds all the same, it only names nobody
            say(f"warning: {path}: {error.strerror}")

    def release(self) -> None:
        self._file.close()
