"""One run in one folder, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distill.checkpoint.run_lock import RunLock
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.process

HOLDER = """
import os, sys
from pathlib import Path
from distill.checkpoint.run_lock import RunLock

lock = RunLock(Path(sys.argv[1]))
lock.take()
if os.fork() == 0:  # as a data loader's worker, which outlives a killed run
    os.close(1)
    import time
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_folder_in_use_is_refused_until_its_holder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    holder = hold(folder)
    try:
        for _ in range(2):  # a refused attempt gives nothing away
            with pytest.raises(ValueError) as caught:
                RunLock(folder)
            assert str(caught.value) == (
                f"{folder}: in use by process {holder.pid} on {socket.gethostname()}; "
                "wait for that run, stop it, or choose another name=..."
            )
        holder.kill()
        holder.wait()
        before = (folder / ".lock").stat()
        lock = RunLock(folder)  # although a child of the holder still lives
        assert (folder / ".lock").stat().st_mtime_ns == before.st_mtime_ns
        lock.take()
        assert (folder / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
        lock.release()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


@pytest.mark.parametrize("name", ["file/run", "file", "x" * 300])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .(Not a directory|File name too long).; choose another"):
        RunLock(tmp_path / name)


def test_nothing_is_made_before_the_folder_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    lock = RunLock(folder)
    assert not list(tmp_path.iterdir())
    lock.take()
    assert (folder / ".lock").is_file()
    lock.discard()
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_is_never_discarded(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    lock = RunLock(folder)
    lock.take()
    lock.discard()
    assert list(tmp_path.rglob("*")) == [folder]
    (folder / ".lock").write_text("process 1 on there\n")
    lock = RunLock(folder)
    lock.take()
    lock.discard()
    assert (folder / ".lock").is_file()
