"""A run that is stopped and goes on is the run that was never stopped: real ranks, every counter, every log line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.checkpoint import formats
from distill.checkpoint.formats import read_adapter, read_optimizer, read_trainer_state
from distill.checkpoint.run_lock import RunLock
from distill.checkpoint.store import find_checkpoint
from distill.training.trainer import Trainer
from launch import train
from tests.helpers.mini_model import write_mini
from tests.helpers.ranks import RankResult, returned, run_ranks, start_ranks, told
from tests.launch.test_train import RECIPE, Workplace, assert_one_error, command

PICTURES = 30
LAST = 5
STOP = 3  # between the log lines of updates 2 and 4
SETTINGS = [
    "train.effective_batch=6",
    "train.micro_batch=1",
    f"train.max_steps={LAST}",
    "train.schedule=cosine",
    "train.ema_decay=0.5",
    "lora.dropout=0.1",
    "log.every=2",
    "checkpoint.save_steps=0",
    "data.part=all",
    "data.max_unreadable=0.5",
]
HALF = [*SETTINGS, "train.fp16_on_cpu=true"]
POISONED = (1, 3, 6)  # batches that overflow: one in the window that the stop falls into, one after it
NOT_EXACT = {
    "time",
    "samples_per_second",
    "host_memory_gib",
    "host_memory_available_gib",
    "tree_rss_gib",
    "disk_free_gib",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("resume")
    write_dataset(folder / "data", PICTURES, SyntheticConfig(size=96), seed=4)
    for number, path in enumerate(sorted((folder / "data" / "imgs").iterdir())):
        if number % 7 == 0:
            path.write_bytes(path.read_bytes()[:200])  # counted, and part of the state
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return Workplace(folder, (*write_mini(folder), f"run_root={folder / 'runs'}"))


def eventful(argv: list[str], poisoned: tuple[int, ...], stop: int) -> None:
    """The command. In some batches the last rank's loss has an infinite gradient; after update `stop` (0: never) the
    run writes a checkpoint and ends, as a signal makes it do."""
    original_run, original_after = Trainer.run, Trainer._after_update

    def run(trainer: Any) -> Any:
        original_loss, engine = trainer.objective.loss, trainer.engine

        def loss(roles: Any, item: Any) -> Any:
            output = original_loss(roles, item)
            hit = trainer.progress.batches in poisoned and engine.world.rank == engine.world.size - 1
            return replace(output, loss=output.loss * float("inf")) if hit else output

        trainer.objective.loss = loss
        return original_run(trainer)

    def after_update(trainer: Any, *rest: Any) -> None:
        original_after(trainer, *rest)
        if trainer.progress.updates == stop:
            trainer.checkpoints.save(trainer.progress, trainer.metrics.window)
            trainer.checkpoints.finish()
            trainer.watchdog.finish()  # the ranks no longer mind that others end
            trainer.engine.barrier()
            raise SystemExit(0)

    Trainer.run, Trainer._after_update = run, after_update  # type: ignore[method-assign]  # this process is forked for one call
    raise SystemExit(train.main(argv))


def records(place: Workplace, name: str) -> list[dict[str, Any]]:
    lines = (place.run_dir(name) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_EXACT} for line in lines]


def tensors(place: Workplace, name: str) -> dict[str, torch.Tensor]:
    """Adapter (the average of the weights) and optimizer file of the run's last checkpoint, flat."""
    folder = find_checkpoint(place.run_dir(name))
    assert folder.name == f"checkpoint-{LAST}"
    flat = {f"{slot}/{n}": t for n, slots in read_optimizer(folder).items() for slot, t in slots.items()}
    assert any(key.startswith("ema/") for key in flat)
    return flat | read_adapter(folder)[0]


def counters(place: Workplace, name: str) -> formats.TrainerState:
    return read_trainer_state(find_checkpoint(place.run_dir(name)))


@pytest.fixture(scope="module")
def stopped(place: Workplace) -> None:
    """Undisturbed and stopped after three updates: in fp16 with overflows on two ranks; in fp32 on one, and on two."""
    for settings, poisoned, kind, world in ((SETTINGS, (), "whole", 1), (HALF, POISONED, "half", 2)):
        started = [
            start_ranks(ranks, eventful, place.argv(f"{kind}-{name}", *settings), poisoned, stop)
            for name, stop, ranks in (("undisturbed", 0, world), ("stopped", STOP, 2))
        ]
        for ranks in started:
            returned(ranks.wait())


def go_on(place: Workplace, kind: str, world: int, *changes: str) -> tuple[str, list[RankResult]]:
    name = f"{kind}-resumed-{world}{'-'.join(changes)}"
    shutil.copytree(place.run_dir(f"{kind}-stopped"), place.run_dir(name))
    settings, poisoned = (HALF, POISONED) if kind == "half" else (SETTINGS, ())
    results = run_ranks(world, eventful, place.argv(name, *settings, *changes), poisoned, 0)
    returned(results)
    assert f"at update {STOP}" in results[0].stdout
    return name, results


def test_on_the_same_ranks_everything_is_bit_equal(place: Workplace, stopped: None) -> None:
    state = counters(place, "half-stopped")
    window = state.extra["open_window"]
    assert (state.step, state.batches, state.skipped_steps) == (STOP, 5, 2)
    assert len(window) == 2 and window[0]["batches"] == 2  # the one that overflowed, and the third update
    name, _ = go_on(place, "half", 2)
    assert records(place, name) == records(place, "half-undisturbed")
    assert [record["step"] for record in records(place, name)] == [2, 4, LAST]
    ours, theirs = tensors(place, name), tensors(place, "half-undisturbed")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert counters(place, name) == counters(place, "half-undisturbed")
    final = counters(place, name)
    assert final.skipped_steps == len(POISONED) and final.loss_scaler["cur_scale"] == 2.0**14
    assert sum(final.extra["unreadable"].values()) > 3


def test_on_other_numbers_of_ranks_it_is_equal_up_to_rounding(place: Workplace, stopped: None) -> None:
    """One rank without a break; two, and after the stop three."""
    assert len(counters(place, "whole-stopped").extra["open_window"]) == 2
    name, _ = go_on(place, "whole", 3)
    ours, theirs = records(place, name), records(place, "whole-undisturbed")
    assert [record["step"] for record in ours] == [2, 4, LAST]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert all(mine[key] == pytest.approx(other[key], rel=1e-5 if key != "grad_norm" else 1e-3) for key in other)
    a, b = tensors(place, name), tensors(place, "whole-undisturbed")
    assert all((a[key] - b[key]).norm() <= 1e-3 * b[key].norm() for key in b)
    assert counters(place, name).extra["unreadable"] == counters(place, "whole-undisturbed").extra["unreadable"]


def test_the_optimizer_can_start_afresh_once(place: Workplace, stopped: None) -> None:
    wish = "checkpoint.resume_optimizer=false"
    name, results = go_on(place, "half", 1, wish)
    assert f"{wish}: the optimizer starts afresh" in results[0].stdout
    state = counters(place, name)
    assert state.step == LAST and state.extra["optimizer_restart"] == STOP
    folder = find_checkpoint(place.run_dir(name))
    assert {float(slots["step"]) for slots in read_optimizer(folder).values()} == {float(LAST - STOP)}
    rates = [record["learning_rate"] for record in records(place, name)]
    assert rates == [record["learning_rate"] for record in records(place, "half-undisturbed")]  # the schedule goes on
    (result,) = run_ranks(1, command, place.argv(name, *HALF, wish))  # the same command again
    assert f"goes on, after its fresh start at update {STOP}" in result.stdout, told([result])


# --- a disk that refuses, during a training ---


def refusing(argv: list[str], attempts: tuple[int, ...]) -> None:
    """The command, with a disk that is full at some of the checkpoints, counted from 0."""
    original, count = formats.write_optimizer, [0]

    def write(folder: Path, state: Any) -> None:
        count[0] += 1
        if count[0] - 1 in attempts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(folder, state)

    formats.write_optimizer = write
    raise SystemExit(train.main(argv))


SHORT = ["train.effective_batch=6", "train.micro_batch=1", "data.part=all", "data.max_unreadable=0.5"]


def test_a_training_goes_on_without_room_and_says_so_at_its_end(place: Workplace) -> None:
    """Every batch is a pass over the data: checkpoints are due after updates 2 and, as the last one, 3."""
    batch = ["train.effective_batch=30", "train.micro_batch=15", "train.max_steps=3"]
    settings = [*SHORT, *batch, "checkpoint.save_steps=0", "checkpoint.save_epochs=2"]
    full = {"once": (0,), "end": (1,)}
    started = [start_ranks(2, refusing, place.argv(name, *settings), full[name]) for name in full]
    once, end = (ranks.wait() for ranks in started)
    returned(once)
    assert "checkpoint-2: No space left on device; not written (1 so far)" in once[0].stdout, told(once)
    assert find_checkpoint(place.run_dir("once")).name == "checkpoint-3"
    assert records(place, "once")[-1]["checkpoint_failures"] == 1.0
    assert read_trainer_state(place.run_dir("once") / "checkpoint-3").extra["checkpoint_failures"] == 1
    assert_one_error(end, str(place.run_dir("end")), "the last checkpoint could not be written (checkpoint-3: No space")
    assert find_checkpoint(place.run_dir("end")).name == "checkpoint-2"


# --- two runs in one folder, and a start from elsewhere ---


def test_a_second_run_in_the_folder_is_refused_on_all_its_ranks(place: Workplace) -> None:
    lock = RunLock(place.run_dir("shared"))  # as a run of this process would hold it
    argv = place.argv("shared", *SHORT, "train.max_steps=1")
    assert_one_error(run_ranks(2, command, argv), f"{place.run_dir('shared')}: in use by process {os.getpid()} on ")
    lock.release()
    assert sorted(path.name for path in place.run_dir("shared").iterdir()) == [".lock"]


def on_port(port: int, argv: list[str]) -> None:
    os.environ["MASTER_PORT"] = str(port)
    command(argv)


def test_a_port_that_another_run_has_is_named(place: Workplace) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.install_signal_handlers()
        port = taken.getsockname()[1]
        results = run_ranks(1, on_port, port, place.argv("port", *SHORT))
    assert_one_error(results, f"port {port} is taken", f"deepspeed --master_port {port + 1}")


def test_an_adapter_folder_is_a_start(place: Workplace, stopped: None) -> None:
    folder = place.folder / "old" / "checkpoint-500"
    folder.mkdir(parents=True)
    trained = read_adapter(find_checkpoint(place.run_dir("whole-undisturbed")))[0]
    torch.save({f"base_model.model.{name}": tensor for name, tensor in trained.items()}, folder / "adapter_model.bin")
    torch.save({"global_step": 500}, folder / "training_state.pt")
    wrong = run_ranks(1, command, place.argv("warm", *SHORT, f"checkpoint.resume={folder}"))
    assert_one_error(wrong, "has no manifest.json", f"lora.weights={folder}")
    settings = [*SHORT, "train.max_steps=1", "train.learning_rate=1e-12", "train.weight_decay=0.0"]
    (result,) = run_ranks(1, command, place.argv("warm", *settings, f"lora.weights={folder}"))
    returned([result])
    file = folder / "adapter_model.bin"
    assert f"starts from {file}: {len(trained)} tensors, trained for 500 updates before" in result.stdout
    after = read_adapter(find_checkpoint(place.run_dir("warm")))[0]
    assert all(torch.allclose(after[name], trained[name], atol=1e-8) for name in trained)
