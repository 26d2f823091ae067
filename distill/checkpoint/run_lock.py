"""A lock on a run folder, so that no two runs share it. The operating system releases it when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = ".lock"
_FLOCK = "hhqqi"
"""Linux's struct flock on 64 bits: type, whence, start, length, process."""


class RunLock:
    """Holds `run_dir/.lock` until `release`, or until this process is gone.

    In two steps, because a command that is refused must leave everything as it was: the constructor takes the lock
    where its file exists, and writes nothing; `take` makes folder and file where they are missing and writes the
    holder's name.

    A record lock (fcntl) and not flock: worker processes, which may outlive a killed run by seconds, do not inherit it,
    and network file systems know it. Other code of this process must not open the file: closing it would give the lock
    back.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None] = print, option: str = "") -> None:
        """
        Args:
            option: what names the folder on the command line; default: a run's recipe.

        Raises ValueError where another process holds the lock, naming it, or where the folder cannot be written.
        """
        self._run_dir, self._path, self._say, self._option = run_dir, run_dir / LOCK, say, option
        self._file: IO[str] | None = None
        self._made: list[Path] = []  # by `take`, the deepest first
        try:
            if self._path.exists():
                self._file = self._path.open("r+", encoding="utf-8")
            else:
                _require_writable(run_dir)
        except OSError as error:
            raise self._unwritable(error) from error
        if self._file is not None:
            self._acquire(self._file)

    def take(self) -> None:
        """Makes what is missing and says who holds the lock. Raises ValueError as the constructor does."""
        if self._file is None:
            try:
                missing = [path for path in (self._path, self._run_dir, *self._run_dir.parents) if not path.exists()]
                self._run_dir.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a+", encoding="utf-8")
            except OSError as error:
                raise self._unwritable(error) from error
            self._acquire(self._file)
            self._made = missing
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        except OSError as error:  # a full disk: the lock holds all the same, it only names nobody
            self._say(f"warning: {self._path}: {error.strerror}")

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Removes what `take` has made, folders only where they are empty, and releases the lock."""
        for path in self._made:
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        self._made = []
        self.release()

    def _acquire(self, file: IO[str]) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                self._say(
                    f"warning: {self._path}: no lock on this file system ({error.strerror}); start no second run in it"
                )
                return
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            self.release()
            another = self._option or "name=..."
            raise ValueError(
                f"{self._run_dir}: in use by {holder}; wait for that run, stop it, or choose another {another}"
            ) from error

    def _unwritable(self, error: OSError) -> ValueError:
        another = self._option or "run_root=..."
        return ValueError(f"{self._run_dir}: cannot be written ({error.strerror}); choose another {another}")


def _require_writable(folder: Path) -> None:
    """Raises OSError where the folder, or the nearest one above it that exists, takes no new file."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def lock_holder(run_dir: Path) -> str:
    """The process that holds a run folder's lock, as it has named itself; '' where none does. Takes no lock itself."""
    path = run_dir / LOCK
    try:
        with path.open("r", encoding="utf-8") as file:
            query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, query))[0]
            return "" if kind == fcntl.F_UNLCK else file.read(200).strip() or "another process"
    except OSError:  # no file, or a file system without locks
        return ""
