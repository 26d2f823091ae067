"""How far a run folder has been sent to MLflow, and which process sends it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from distill.checkpoint.store import write_text_atomically

LOCK = ".tracking.lock"
STATE = "tracking.json"


class UploadState:
    """The lock and the state file of one run folder: {"targets": {URI: {"run_id", "sent": {journal: bytes}}}}.

    The operating system releases the lock when the process ends, also when it is killed. It is a record lock and not
    flock: forked processes (data workers) do not inherit it. Where the file system has no locks every process may
    send, which is safe: MLflow ignores a metric that it has.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None]) -> None:
        self._path, self._lock_path, self._say = run_dir / STATE, run_dir / LOCK, say
        self._lock: BinaryIO | None = None
        self._said: set[str] = set()

    @property
    def held(self) -> bool:
        return self._lock is not None

    def acquire(self) -> bool:
        """Whether this process may send. Does not wait."""
        if self._lock:
            return True
        try:
            file = self._lock_path.open("ab+", buffering=0)
        except OSError:  # read-only or full: no other process could write here either
            return True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        self._lock = file
        with suppress(OSError):  # a full disk: the name of the holder is only for people
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        return True

    def release(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def holder(self) -> str:
        """The process that took the lock last: `pid N on HOST`."""
        with suppress(OSError):
            return self._lock_path.read_text(encoding="utf-8").strip() or "another process"
        return "another process"

    def load(self, uri: str) -> tuple[str, dict[str, int]] | None:
        """The run's id in the MLflow at `uri` and the bytes sent of each journal; None where nothing is known."""
        state = self._targets().get(uri)
        return state and (state["run_id"], dict(state["sent"]))

    def store(self, uri: str, run_id: str, sent: Mapping[str, int]) -> None:
        """Writes the state. Where that fails (disk full), it is said once and only this process knows it."""
        targets = self._targets() | {uri: {"run_id": run_id, "sent": dict(sent)}}
        try:
            write_text_atomically(self._path, json.dumps({"targets": targets}, indent=1) + "\n")
        except OSError as error:
            self._say_once(f"tracking: {self._path} cannot be written ({error.strerror}); sending goes on")

    def _targets(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if "uri" in content:  # the format of when a folder knew one MLflow only
                content = {"targets": {content["uri"]: content}}
            for state in content["targets"].values():
                offsets = state["sent"].values()
                if not (isinstance(state["run_id"], str) and all(isinstance(n, int) and n >= 0 for n in offsets)):
                    raise TypeError
            return dict(content["targets"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._say_once(f"tracking: {self._path} is not readable; the run is sent to MLflow from its beginning")
            return {}

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)
