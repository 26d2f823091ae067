"""Faults of the machine that no other test plants: a store that is removed, a clock that jumps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.training.trainer import Trainer
from launch import build_lmdb_cache, train
from tests.helpers.mini_model import write_mini
from tests.helpers.ranks import returned, run_ranks, start_ranks
from tests.launch.test_train import RECIPE, SMALL_BATCH, Workplace, assert_one_error, command

UPDATES = 4
FOUR = [*SMALL_BATCH, f"train.max_steps={UPDATES}", "data.part=all", "data.workers=1"]
DAY = 86400.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("faults")
    write_dataset(folder / "data", 16, SyntheticConfig(size=96), seed=4)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return Workplace(folder, (*write_mini(folder), f"run_root={folder / 'runs'}"))


def store_of(place: Workplace) -> Path:
    store = place.folder / "features.lmdb"
    argv = [str(place.folder / "data" / "data.json"), "--recipe", str(place.folder / "recipe.yaml")]
    assert build_lmdb_cache.main([*argv, "--workers", "0", "--out", str(store)]) == 0
    return store


def removing(argv: list[str], store: Path) -> None:
    """The command; the store's file is removed after the second update."""
    original = Trainer._after_update

    def after_update(trainer: Any, *rest: Any) -> None:
        original(trainer, *rest)
        if trainer.progress.updates == 2 and trainer.engine.world.is_main:
            store.unlink()

    Trainer._after_update = after_update  # this process is forked for one call
    raise SystemExit(train.main(argv))


def jumping(argv: list[str]) -> None:
    """The command; the machine's clock goes a day forward after the first update and two days back after the third."""
    original, real, shift = Trainer._after_update, time.time, [0.0]

    def after_update(trainer: Any, *rest: Any) -> None:
        original(trainer, *rest)
        shift[0] = {1: DAY, 3: -DAY}.get(trainer.progress.updates, shift[0])

    Trainer._after_update = after_update
    time.time = lambda: real() + shift[0]
    raise SystemExit(train.main(argv))


def test_a_store_that_is_removed_serves_the_run_that_reads_it_and_no_later_one(place: Workplace) -> None:
    store = store_of(place)
    settings = [*FOUR, f"data.cache={store}", "log.samples=true"]
    undisturbed = start_ranks(2, command, place.argv("there", *settings))
    returned(undisturbed.wait())
    returned(run_ranks(2, removing, place.argv("removed", *settings), store))
    assert not store.exists()
    assert place.metrics("removed") == place.metrics("there")
    assert_one_error(run_ranks(2, command, place.argv("later", *settings)), str(store), "there is no feature cache")


def test_a_clock_that_jumps_changes_nothing(place: Workplace) -> None:
    settings = [*FOUR, "watchdog.stall=600", "log.samples=true"]
    started = [
        start_ranks(2, function, place.argv(name, *settings))
        for name, function in (("steady", command), ("jumped", jumping))
    ]
    for ranks in started:
        returned(ranks.wait())
    assert place.metrics("jumped") == place.metrics("steady")
    times = list(place.metrics("jumped", "time").values())
    assert len(times) == UPDATES and times[1] - times[0] > DAY / 2 and times[2] > times[3] + DAY
    speeds = place.metrics("jumped", "samples_per_second").values()
    assert all(0.01 < speed < 1e4 for speed in speeds), "speeds are taken from a clock that does not jump"
