"""A run that is stopped and goes on is the run that was never stopped: real ranks, every counter, every log line."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.checkpoint import formats
from distill.checkpoint.formats import read_adapter, read_optimizer, read_trainer_state
from distill.checkpoint.run_lock import RunLock
from distill.checkpoint.store import find_checkpoint
from distill.tracking.metric_names import is_varying, read_metrics
from launch import train
from tests.helpers.processes.ranks import RankResult, all_output, returned, run_ranks, start_ranks
from tests.helpers.processes.train_patches import train_with_overflows
from tests.helpers.processes.training_runs import TrainingFolder, assert_one_error, last_tensors, train_command

pytestmark = pytest.mark.process

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    runs = TrainingFolder.create(tmp_path_factory.mktemp("resume"), PICTURES)
    for number, path in enumerate(sorted((runs.folder / "data" / "imgs").iterdir())):
        if number % 7 == 0:
            path.write_bytes(path.read_bytes()[:200])  # counted, and part of the state
    return runs


def records(runs: TrainingFolder, name: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the values that differ from run to run; checkpoints fail in one test only."""
    exact = ("step", "health/checkpoint_failures")
    return [{k: v for k, v in r.items() if k in exact or not is_varying(k)} for r in read_metrics(runs.run_dir(name))]


def tensors(runs: TrainingFolder, name: str) -> dict[str, torch.Tensor]:
    """Adapter (the average of the weights) and optimizer file of the run's last checkpoint, flat."""
    found = last_tensors(runs.run_dir(name), LAST)
    assert any(key.startswith("ema/") for key in found)
    return found


def counters(runs: TrainingFolder, name: str) -> formats.TrainerState:
    return read_trainer_state(find_checkpoint(runs.run_dir(name)))


@pytest.fixture(scope="module")
def stopped(runs: TrainingFolder) -> None:
    """Undisturbed and stopped after three updates: in fp16 with overflows on two ranks; in fp32 on one, and on two."""
    for settings, poisoned, kind, world in ((SETTINGS, (), "whole", 1), (HALF, POISONED, "half", 2)):
        started = [
            start_ranks(ranks, train_with_overflows, runs.argv(f"{kind}-{name}", *settings), poisoned, stop)
            for name, stop, ranks in (("undisturbed", 0, world), ("stopped", STOP, 2))
        ]
        for ranks in started:
            returned(ranks.wait())


def go_on(runs: TrainingFolder, kind: str, world: int, *changes: str) -> tuple[str, list[RankResult]]:
    name = f"{kind}-resumed-{world}{'-'.join(changes)}"
    shutil.copytree(runs.run_dir(f"{kind}-stopped"), runs.run_dir(name))
    settings, poisoned = (HALF, POISONED) if kind == "half" else (SETTINGS, ())
    results = run_ranks(world, train_with_overflows, runs.argv(name, *settings, *changes), poisoned, 0)
    returned(results)
    assert f"at update {STOP}" in results[0].stdout
    return name, results


def test_on_the_same_ranks_everything_is_bit_equal(runs: TrainingFolder, stopped: None) -> None:
    state = counters(runs, "half-stopped")
    window = state.extra["open_window"]
    assert (state.step, state.batches, state.skipped_steps) == (STOP, 5, 2)
    assert len(window) == 2 and window[0]["batches"] == 2  # the one that overflowed, and the third update
    name, _ = go_on(runs, "half", 2)
    assert records(runs, name) == records(runs, "half-undisturbed")
    assert [record["step"] for record in records(runs, name)] == [2, 4, LAST]
    ours, theirs = tensors(runs, name), tensors(runs, "half-undisturbed")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert counters(runs, name) == counters(runs, "half-undisturbed")
    final = counters(runs, name)
    assert final.skipped_steps == len(POISONED) and final.loss_scaler["cur_scale"] == 2.0**14
    assert sum(final.extra["unreadable"].values()) > 3


def test_on_other_numbers_of_ranks_it_is_equal_up_to_rounding(runs: TrainingFolder, stopped: None) -> None:
    """One rank without a break; two, and after the stop three."""
    assert len(counters(runs, "whole-stopped").extra["open_window"]) == 2
    name, _ = go_on(runs, "whole", 3)
    ours, theirs = records(runs, name), records(runs, "whole-undisturbed")
    assert [record["step"] for record in ours] == [2, 4, LAST]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert all(
            mine[key] == pytest.approx(other[key], rel=1e-5 if key != "train/grad_norm" else 1e-3) for key in other
        )
    a, b = tensors(runs, name), tensors(runs, "whole-undisturbed")
    assert all((a[key] - b[key]).norm() <= 1e-3 * b[key].norm() for key in b)
    assert counters(runs, name).extra["unreadable"] == counters(runs, "whole-undisturbed").extra["unreadable"]


def test_the_optimizer_can_start_afresh_once(runs: TrainingFolder, stopped: None) -> None:
    wish = "checkpoint.resume_optimizer=false"
    name, results = go_on(runs, "half", 1, wish)
    assert f"{wish}: the optimizer starts afresh" in results[0].stdout
    state = counters(runs, name)
    assert state.step == LAST and state.extra["optimizer_restart"] == STOP
    folder = find_checkpoint(runs.run_dir(name))
    assert {float(slots["step"]) for slots in read_optimizer(folder).values()} == {float(LAST - STOP)}
    rates = [record["train/learning_rate"] for record in records(runs, name)]
    assert rates == [
        record["train/learning_rate"] for record in records(runs, "half-undisturbed")
    ]  # the schedule goes on
    (result,) = run_ranks(1, train_command, runs.argv(name, *HALF, wish))  # the same command again
    assert f"goes on, after its fresh start at update {STOP}" in result.stdout, all_output([result])


# --- a disk that refuses, during a training ---


def train_on_a_full_disk(argv: list[str], attempts: tuple[int, ...]) -> None:
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


def test_a_training_goes_on_without_room_and_says_so_at_its_end(tmp_path: Path) -> None:
    """Every batch is a pass over the data: checkpoints are due after updates 2 and, as the last one, 3."""
    runs = TrainingFolder.create(tmp_path, 6)
    batch = ["train.effective_batch=6", "train.micro_batch=3", "train.max_steps=3"]
    settings = [*SHORT, *batch, "checkpoint.save_steps=0", "checkpoint.save_epochs=2"]
    full = {"once": (0,), "end": (1,)}
    started = [start_ranks(2, train_on_a_full_disk, runs.argv(name, *settings), full[name]) for name in full]
    once, end = (ranks.wait() for ranks in started)
    returned(once)
    assert "checkpoint-2: No space left on device; not written (1 so far)" in once[0].stdout, all_output(once)
    assert find_checkpoint(runs.run_dir("once")).name == "checkpoint-3"
    assert records(runs, "once")[-1]["health/checkpoint_failures"] == 1.0
    assert read_trainer_state(runs.run_dir("once") / "checkpoint-3").extra["checkpoint_failures"] == 1
    assert_one_error(end, str(runs.run_dir("end")), "the last checkpoint could not be written (checkpoint-3: No space")
    assert find_checkpoint(runs.run_dir("end")).name == "checkpoint-2"


# --- two runs in one folder, and a start from elsewhere ---


def test_a_second_run_in_the_folder_is_refused_on_all_its_ranks(runs: TrainingFolder) -> None:
    lock = RunLock(runs.run_dir("shared"))
    lock.take()  # as a run of this process would hold it
    argv = runs.argv("shared", *SHORT, "train.max_steps=1")
    results = run_ranks(2, train_command, argv)
    assert_one_error(results, f"{runs.run_dir('shared')}: in use by process {os.getpid()} on ")
    lock.release()
    assert sorted(path.name for path in runs.run_dir("shared").iterdir()) == [".lock"]


def train_on_port(port: int, argv: list[str]) -> None:
    os.environ["MASTER_PORT"] = str(port)
    train_command(argv)


def test_a_port_that_another_run_has_is_named(runs: TrainingFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        results = run_ranks(1, train_on_port, port, runs.argv("port", *SHORT))
    assert_one_error(results, f"port {port} is taken", f"deepspeed --master_port {port + 1}")


def test_an_adapter_folder_is_a_start(runs: TrainingFolder, stopped: None) -> None:
    folder = runs.folder / "old" / "checkpoint-500"
    folder.mkdir(parents=True)
    trained = read_adapter(find_checkpoint(runs.run_dir("whole-undisturbed")))[0]
    torch.save({f"base_model.model.{name}": tensor for name, tensor in trained.items()}, folder / "adapter_model.bin")
    torch.save({"global_step": 500}, folder / "training_state.pt")
    wrong = run_ranks(1, train_command, runs.argv("warm", *SHORT, f"checkpoint.resume={folder}"))
    assert_one_error(wrong, "has no manifest.json", f"lora.weights={folder}")
    settings = [*SHORT, "train.max_steps=1", "train.learning_rate=1e-12", "train.weight_decay=0.0"]
    (result,) = run_ranks(1, train_command, runs.argv("warm", *settings, f"lora.weights={folder}"))
    returned([result])
    file = folder / "adapter_model.bin"
    assert f"starts from {file}: {len(trained)} tensors, trained for 500 updates before" in result.stdout
    after = read_adapter(find_checkpoint(runs.run_dir("warm")))[0]
    assert all(torch.allclose(after[name], trained[name], atol=1e-8) for name in trained)
