"""Faults of the machine that no other test plants: a store that is removed, a clock that jumps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from launch import build_lmdb_cache, train
from tests.helpers.processes.ranks import returned, run_ranks, start_ranks
from tests.helpers.processes.train_patches import after_each_update
from tests.helpers.processes.training_runs import SMALL_BATCH, TrainingFolder, assert_one_error, train_command

pytestmark = pytest.mark.process

UPDATES = 4
FOUR = [*SMALL_BATCH, f"train.max_steps={UPDATES}", "data.part=all", "data.workers=1"]
DAY = 86400.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    return TrainingFolder.create(tmp_path_factory.mktemp("faults"), 16)


def build_store(runs: TrainingFolder) -> Path:
    store = runs.folder / "features.lmdb"
    argv = [str(runs.data), "--recipe", str(runs.recipe)]
    assert build_lmdb_cache.main([*argv, "--workers", "0", "--out", str(store)]) == 0
    return store


def train_and_remove(argv: list[str], store: Path) -> None:
    """The command; the store's file is removed after the second update."""

    def remove(trainer: Any) -> None:
        if trainer.progress.updates == 2 and trainer.engine.world.is_main:
            store.unlink()

    after_each_update(remove)
    raise SystemExit(train.main(argv))


def train_with_clock_jumps(argv: list[str]) -> None:
    """The command; the machine's clock goes a day forward after the first update and two days back after the third."""
    real, shift = time.time, [0.0]

    def jump(trainer: Any) -> None:
        shift[0] = {1: DAY, 3: -DAY}.get(trainer.progress.updates, shift[0])

    after_each_update(jump)
    time.time = lambda: real() + shift[0]
    raise SystemExit(train.main(argv))


def test_a_store_that_is_removed_serves_the_run_that_reads_it_and_no_later_one(runs: TrainingFolder) -> None:
    store = build_store(runs)
    settings = [*FOUR, f"data.cache={store}", "log.samples=true"]
    undisturbed = start_ranks(2, train_command, runs.argv("there", *settings))
    returned(undisturbed.wait())
    returned(run_ranks(2, train_and_remove, runs.argv("removed", *settings), store))
    assert not store.exists()
    assert runs.metrics("removed") == runs.metrics("there")
    later = run_ranks(2, train_command, runs.argv("later", *settings))
    assert_one_error(later, str(store), "there is no feature cache")


def test_a_clock_that_jumps_changes_nothing(runs: TrainingFolder) -> None:
    settings = [*FOUR, "watchdog.stall=600", "log.samples=true"]
    started = [
        start_ranks(2, function, runs.argv(name, *settings))
        for name, function in (("steady", train_command), ("jumped", train_with_clock_jumps))
    ]
    for ranks in started:
        returned(ranks.wait())
    assert runs.metrics("jumped") == runs.metrics("steady")
    times = list(runs.metrics("jumped", "time").values())
    assert len(times) == UPDATES and times[1] - times[0] > DAY / 2 and times[2] > times[3] + DAY
    speeds = runs.metrics("jumped", "speed/samples_per_second").values()
    assert all(0.01 < speed < 1e4 for speed in speeds), "speeds are taken from a clock that does not jump"
