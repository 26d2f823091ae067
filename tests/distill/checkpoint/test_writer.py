"""The background writer: one write at a time, a disk that refuses, and our own faults."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.checkpoint.formats import write_tensors
from distill.checkpoint.store import find_checkpoint
from distill.checkpoint.writer import CheckpointWriter

MEGABYTE = 1 << 20


def filled(megabytes: float) -> Callable[[Path], None]:
    return lambda folder: write_tensors(folder / "w.safetensors", {"w": torch.ones(int(megabytes * MEGABYTE / 4))})


def test_training_goes_on_while_one_checkpoint_is_written(tmp_path: Path) -> None:
    said: list[str] = []
    writer = CheckpointWriter(tmp_path, keep=3, say=said.append)
    go, running, most = threading.Event(), [0], [0]

    def slow(folder: Path) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert go.wait(30)
        filled(0.1)(folder)
        running[0] -= 1

    writer.submit(1, slow, "; training waited 0.00 s")
    assert not said and not (tmp_path / "latest").exists()  # handed over, not written
    second = threading.Thread(target=writer.submit, args=(2, slow))
    second.start()
    second.join(0.2)
    assert second.is_alive() and most == [1]  # the second one waits for the first
    go.set()
    second.join()
    writer.wait()
    assert most == [1] and len(said) == 2 and writer.failures == 0
    assert said[0].startswith(f"checkpoint: {tmp_path / 'checkpoint-1'} (0.1 MB in ")
    assert said[0].endswith("training waited 0.00 s)")
    assert find_checkpoint(tmp_path).name == "checkpoint-2"


def test_our_own_fault_surfaces_at_the_next_call(tmp_path: Path) -> None:
    def wrong(folder: Path) -> None:
        raise KeyError("a name that is not there")

    writer = CheckpointWriter(tmp_path, keep=3, say=lambda line: None)
    writer.submit(1, wrong)
    with pytest.raises(KeyError, match="a name that is not there"):
        writer.submit(2, filled(0.1))
    writer.wait()  # told once
    assert writer.failures == 0 and not list(tmp_path.glob("*checkpoint*"))


@pytest.mark.process
def test_a_full_disk_is_said_and_the_checkpoints_stay(small_disk: Path) -> None:
    said: list[str] = []
    run_dir = small_disk / "run"
    writer = CheckpointWriter(run_dir, keep=1, failures=2, say=said.append)
    writer.submit(10, filled(1.5))
    writer.wait()
    (small_disk / "other").write_bytes(bytes(2 * MEGABYTE))  # somebody else's file
    for failures, step in ((3, 20), (4, 30)):
        writer.submit(step, filled(1.5))
        writer.wait()
        assert writer.failures == failures
        assert writer.last_failure == f"checkpoint-{step}: No space left on device"
        assert f"checkpoint-{step}: No space left on device; not written ({failures} so far)" in said[-1]
        assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoint-10", "latest"]
        assert find_checkpoint(run_dir).name == "checkpoint-10"
    (small_disk / "other").unlink()
    writer.submit(40, filled(1.5))
    writer.wait()
    assert writer.failures == 4 and writer.last_failure == ""
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoint-40", "latest"]  # keep=1


@pytest.mark.process
def test_a_disk_that_gets_full_at_any_moment_of_a_save(small_disk: Path) -> None:
    """Tensors, manifest and pointer are small files here; the space ends at another one of them each time."""
    failures = [_full_with(small_disk, free) for free in range(0, 120_000, 4096)]
    assert 5 < sum(failures) < len(failures) - 5  # the last ones had room


def _full_with(small_disk: Path, free: int) -> int:
    """Whether a save failed with so many bytes left; in any case there is a checkpoint before, during and after."""

    def write(folder: Path) -> None:
        for number in range(3):
            write_tensors(folder / f"{number}.safetensors", {"w": torch.ones(4000)})

    writer = CheckpointWriter(small_disk / "run", keep=1, say=lambda line: None)
    writer.submit(1, write)
    writer.wait()
    _fill(small_disk, free)
    writer.submit(2, write)
    writer.wait()
    found = find_checkpoint(small_disk / "run", lambda line: None)
    assert found.name == ("checkpoint-1" if writer.failures else "checkpoint-2")
    assert not list((small_disk / "run").glob(".*.tmp"))
    (small_disk / "other").unlink()
    writer.submit(3, write)
    writer.wait()
    assert find_checkpoint(small_disk / "run").name == "checkpoint-3"
    shutil.rmtree(small_disk / "run")
    return writer.failures


def _fill(disk: Path, free: int) -> None:
    space = os.statvfs(disk)
    (disk / "other").write_bytes(bytes(space.f_bavail * space.f_frsize - free))


@pytest.mark.process
def test_a_folder_that_has_become_read_only(small_disk: Path) -> None:
    writer = CheckpointWriter(small_disk, keep=1, say=lambda line: None)
    writer.submit(1, filled(0.1))
    writer.wait()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer.submit(2, filled(0.1))
    writer.wait()
    assert writer.last_failure == "checkpoint-2: Read-only file system"
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert find_checkpoint(small_disk).name == "checkpoint-1"
