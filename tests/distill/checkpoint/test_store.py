"""Checkpoints: complete or absent, whatever moment the process dies at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import anytext2  # noqa: F401  declares the torchvision operators that peft's imports need
from distill.checkpoint.formats import (
    TrainerState,
    write_adapter,
    write_optimizer,
    write_trainer_state,
)
from distill.checkpoint.store import CheckpointError, find_checkpoint, mark_best, save_checkpoint, verify_checkpoint
from tests.helpers.models.small_adapter import adamw_state, adapter_tensors, small_student


def _writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(text.encode() * 1000)

    return write


def _steps(run_dir: Path) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in run_dir.iterdir() if p.is_dir())


def test_saved_checkpoint_is_complete_and_latest(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run", 10, _writer("ten"), keep=3)
    assert path == tmp_path / "run" / "checkpoint-10"
    assert (path.parent / "latest").read_text() == "checkpoint-10\n"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 10 and sorted(manifest["files"]) == ["a.txt", "sub/b.bin"]
    assert manifest["files"]["sub/b.bin"]["bytes"] == 3000
    verify_checkpoint(path)
    assert find_checkpoint(path) == path == find_checkpoint(path.parent)
    assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint-10", "latest"]


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):  # 20 after 100: a run that was resumed from an older step
        save_checkpoint(tmp_path, step, _writer(str(step)), keep=2)
    assert _steps(tmp_path) == [20, 100]
    assert find_checkpoint(tmp_path).name == "checkpoint-20"  # what `latest` names, not the highest number


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint.keep=0"):
        save_checkpoint(tmp_path, 1, _writer("x"), keep=0)


def test_incomplete_ones_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    for step in (1, 2, 4):
        save_checkpoint(tmp_path, step, _writer("x"), keep=2)
    assert _steps(tmp_path) == [2, 3, 4]


def _truncate(path: Path) -> None:
    (path / "a.txt").write_text("")


def _flip(path: Path) -> None:
    (path / "a.txt").write_text("NEW")


def _lose_file(path: Path) -> None:
    (path / "sub" / "b.bin").unlink()


def _lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def _break_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 1, "files"')


def _empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 1, "files": {}}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "a.txt: 0 bytes"),
        (_flip, "differs from the SHA-256"),
        (_lose_file, "b.bin: missing"),
        (_lose_manifest, "has no manifest.json"),
        (_break_manifest, "not JSON"),
        (_empty_manifest, "not a manifest"),
    ],
)
def test_damaged_checkpoint_is_skipped_with_the_reason(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    old = save_checkpoint(tmp_path, 1, _writer("old"), keep=5)
    new = save_checkpoint(tmp_path, 2, _writer("new"), keep=5)
    damage(new)
    said: list[str] = []
    assert find_checkpoint(tmp_path, said.append) == old
    assert len(said) == 1 and reason in said[0] and "checkpoint-2" in said[0] and "\n" not in said[0]
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        find_checkpoint(new)


def test_nothing_to_find_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint-N"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "absent")


def test_a_failing_writer_changes_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, _writer("one"), keep=1)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, fail, keep=1)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


class _Death(BaseException):
    """The process is gone: nothing after it may touch the disk, clean-up included."""


def _dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
    """From the `at`-th change of the file system on, every further one raises. Returns a counter of the calls."""
    calls = 0

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls >= at:
                raise _Death
            return function(*args, **kwargs)

        return wrapped

    for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "unlink")):
        monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    return lambda: calls


@pytest.mark.parametrize("step", [1, 2], ids=["same-step-again", "next-step"])
def test_death_at_any_moment_leaves_a_complete_checkpoint(tmp_path: Path, step: int) -> None:
    for at in range(1, 60):
        run_dir = tmp_path / str(at)
        save_checkpoint(run_dir, 1, _writer("one"), keep=1)
        with pytest.MonkeyPatch.context() as patch:
            _dying(patch, at)
            try:
                save_checkpoint(run_dir, step, _writer("new"), keep=1)
                finished = True
            except _Death:
                finished = False
        found = find_checkpoint(run_dir, lambda line: None)
        assert (found / "a.txt").read_text() in ("one", "new")
        again = save_checkpoint(
            run_dir, 3, _writer("three"), keep=1
        )  # what was left over does not disturb the next one
        assert find_checkpoint(run_dir) == again and not list(run_dir.glob(".checkpoint*"))
        if finished:
            assert at > 8  # the loop really went through all the moments
            return
    raise AssertionError("the save never ran to its end")


# --- the best one ---


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, _writer(str(step)), keep=2)
        if step == 2:
            mark_best(tmp_path, "checkpoint-2", 0.75)
    assert _steps(tmp_path) == [2, 4, 5]
    assert (tmp_path / "best").read_text() == "checkpoint-2\n0.75\n"
    assert find_checkpoint(tmp_path / "best") == tmp_path / "checkpoint-2"
    assert find_checkpoint(tmp_path / "latest") == tmp_path / "checkpoint-5" == find_checkpoint(tmp_path)
    mark_best(tmp_path, "checkpoint-5", 0.875)  # a better one: the other is free to go
    save_checkpoint(tmp_path, 6, _writer("6"), keep=2)
    assert _steps(tmp_path) == [5, 6]


def test_only_a_complete_checkpoint_can_be_the_best(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, _writer("one"), keep=2)
    for name, score, words in (
        ("checkpoint-2", 1.0, "checkpoint-2: incomplete"),
        ("../elsewhere", 1.0, "not the name of a checkpoint"),
        ("checkpoint-1", float("nan"), "score nan"),
    ):
        with pytest.raises(ValueError, match=words):
            mark_best(tmp_path, name, score)
    assert not (tmp_path / "best").exists()
    (tmp_path / "best").write_text("../../etc\n")
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        find_checkpoint(tmp_path / "best")


# --- damage ---


@pytest.mark.parametrize("content", ["checkpoint-7\n", "", "../somewhere\n"])
def test_latest_that_points_nowhere_is_said_and_does_no_harm(tmp_path: Path, content: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, _writer(str(step)), keep=2)
    (tmp_path / "latest").write_text(content)
    said: list[str] = []
    assert find_checkpoint(tmp_path, said.append).name == "checkpoint-2"
    assert len(said) == 1 and "latest: names " in said[0] and "\n" not in said[0]


def test_a_real_checkpoint_cut_short_at_any_file_is_passed_over(tmp_path: Path) -> None:
    """Every file of a checkpoint, cut to nothing, to half, by one byte, or with one bit turned."""
    _, wrapped = small_student()
    _, state = adamw_state()

    def write(folder: Path) -> None:
        write_adapter(folder, adapter_tensors(wrapped), wrapped.peft_config["student"])  # type: ignore[index]
        write_optimizer(folder, state)
        write_trainer_state(folder, TrainerState(2, 2, 0, 48))

    old, new = (save_checkpoint(tmp_path, step, write, keep=2) for step in (1, 2))
    files = sorted(new.iterdir())
    assert len(files) == 5
    for file in files:
        whole = file.read_bytes()
        turned = bytearray(whole)
        turned[len(whole) // 2] ^= 1
        for part in (b"", whole[: len(whole) // 2], whole[:-1], bytes(turned)):
            if file.name == "manifest.json" and part == whole[:-1]:
                continue  # its last byte is a line's end, without which it is the same manifest
            file.write_bytes(part)
            said: list[str] = []
            assert find_checkpoint(tmp_path, said.append) == old, (file.name, len(part))
            assert len(said) == 1 and "checkpoint-2" in said[0]
        file.write_bytes(whole)
    assert find_checkpoint(tmp_path) == new
