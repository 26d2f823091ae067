"""How a run ends early: signals, lost ranks, losses that are not finite, on real ranks and through the launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from distill.checkpoint.formats import read_adapter, read_trainer_state
from distill.checkpoint.store import find_checkpoint
from distill.runtime.signals import FAILED, STOPPED
from tests.helpers.paths import ROOT
from tests.helpers.processes.ports import free_port
from tests.helpers.processes.ranks import CPU_ONLY, all_output, returned, run_ranks
from tests.helpers.processes.train_patches import before_run, change_loss
from tests.helpers.processes.training_runs import SMALL_BATCH, ZERO2, TrainingFolder, last_error_line, train_command

pytestmark = pytest.mark.process

UPDATES = 6
SIX = [*SMALL_BATCH, f"train.max_steps={UPDATES}", "checkpoint.save_steps=100", "lora.dropout=0.1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    return TrainingFolder.create(tmp_path_factory.mktemp("signals"), 24)


# --- ranks that stop together ---


def train_and_act(argv: list[str], rank: int, update: int, act: Callable[[Any], None]) -> None:
    """The command; on `rank`, `act(trainer)` is called right after `update`."""

    def prepare(trainer: Any) -> None:
        original = trainer.engine.step

        def step(*rest: float) -> Any:
            result = original(*rest)
            if trainer.engine.world.rank == rank and trainer.progress.updates + 1 == update:
                act(trainer)
            return result

        trainer.engine.step = step

    before_run(prepare)
    train_command(argv)


def sigusr1(trainer: Any) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.5)


def sigkill(trainer: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(trainer: Any) -> None:
    trainer.recipe.watchdog.stall = 2.0  # not before: on a busy machine an update may take longer
    time.sleep(600)


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_and_the_run_goes_on_as_if_nothing_had_been(
    runs: TrainingFolder,
) -> None:
    returned(run_ranks(2, train_command, runs.argv("straight", *SIX)))
    results = run_ranks(2, train_and_act, runs.argv("stopped", *SIX), 1, 2, sigusr1)
    assert [r.exit_code for r in results] == [STOPPED, STOPPED], all_output(results)
    folder = runs.run_dir("stopped")
    (checkpoint,) = folder.glob("checkpoint-*")
    said = f"stopped at update 3 by SIGUSR1 (rank 1): checkpoint {checkpoint}; continue with the same command"
    assert results[0].stdout.strip().splitlines()[-1] == said
    assert checkpoint.name == "checkpoint-3" and read_trainer_state(checkpoint).step == 3
    assert not any("Traceback" in r.stderr for r in results), all_output(results)
    returned(run_ranks(2, train_command, runs.argv("stopped", *SIX)))
    assert runs.metrics("stopped") == runs.metrics("straight")
    ours, theirs = (read_adapter(find_checkpoint(runs.run_dir(name)))[0] for name in ("stopped", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_that_very_update_is_not_written_again(runs: TrainingFolder) -> None:
    results = run_ranks(1, train_and_act, runs.argv("saved", *SIX, "checkpoint.save_steps=3"), 0, 2, sigusr1)
    assert results[0].exit_code == STOPPED, all_output(results)
    assert results[0].stdout.count("checkpoint: ") == 1, all_output(results)
    assert "stopped at update 3 by SIGUSR1: checkpoint " in results[0].stdout


def test_a_signal_in_the_last_update_changes_nothing(runs: TrainingFolder) -> None:
    returned(run_ranks(1, train_and_act, runs.argv("late", *SIX, "train.max_steps=2"), 0, 2, sigusr1))
    assert (runs.run_dir("late") / "checkpoint-2").is_dir()


def test_a_killed_rank_takes_the_others_down_and_is_named(runs: TrainingFolder) -> None:
    begin = time.monotonic()
    results = run_ranks(2, train_and_act, runs.argv("killed", *SIX), 1, 2, sigkill)
    print(f"both ranks had ended {time.monotonic() - begin:.1f} s after the start")
    assert [r.exit_code for r in results] == [FAILED, -signal.SIGKILL], all_output(results)
    line = last_error_line(results[0])
    assert line.startswith("error: rank 1 (process ") and "all ranks end" in line
    assert "Traceback" not in results[0].stderr, all_output(results)


def test_a_rank_that_hangs_is_given_up_with_the_place_where_it_hangs(runs: TrainingFolder) -> None:
    results = run_ranks(1, train_and_act, runs.argv("hung", *SIX), 0, 2, hang)
    assert results[0].exit_code == FAILED, all_output(results)
    assert last_error_line(results[0]) == "error: rank 0: no progress in training for 2 s"
    assert "in hang" in results[0].stderr  # the stack
    assert json.loads((runs.run_dir("hung") / "watchdog.json").read_text())["level"] == "hard"


# --- losses and loss scales ---


def train_with_loss(argv: list[str], change: Callable[[Any, Any, Any], Any]) -> None:
    """The command with `change(trainer, item, output)` in the place of each loss."""
    before_run(lambda trainer: change_loss(trainer, lambda item, output: change(trainer, item, output)))
    train_command(argv)


def nan_in_one_sample(trainer: Any, item: Any, output: Any) -> Any:
    if trainer.progress.batches != 2 or trainer.engine.world.rank != 1:
        return output
    per_sample = output.per_sample.clone()
    per_sample[1] = float("nan")
    return replace(output, loss=per_sample.mean(), per_sample=per_sample)


def infinite_gradient(trainer: Any, item: Any, output: Any) -> Any:
    return replace(output, loss=output.loss * float("inf")) if trainer.progress.updates == 1 else output


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(runs: TrainingFolder) -> None:
    argv = runs.argv("nan", *SIX, "train.micro_batch=2", "checkpoint.save_steps=1")
    results = run_ranks(2, train_with_loss, argv, nan_in_one_sample)
    assert [r.exit_code for r in results] == [FAILED, FAILED], all_output(results)
    folder = runs.run_dir("nan")
    assert find_checkpoint(folder).name == "checkpoint-2"  # what the update would have spoiled is whole
    report = json.loads((folder / "nonfinite.json").read_text())
    assert report["update"] == 3 and [entry["rank"] for entry in report["ranks"]] == [0, 1]
    first, second = (entry["micro_batches"] for entry in report["ranks"])
    assert len(first) == len(second) == 2 and all(len(m["indices"]) == 2 for m in first + second)
    assert [m["losses"][1] for m in second] == ["nan", "nan"]
    assert all(isinstance(loss, float) for m in first for loss in m["losses"])
    bad = second[0]
    (line,) = [line for r in results for line in r.stderr.splitlines() if line.startswith("error:")]
    named = f"update 3: the loss of sample {bad['indices'][1]} ({bad['names'][1]}) on rank 1 and 1 more is not finite"
    assert named in line and "nonfinite.json" in line


def test_a_loss_scale_at_its_floor_ends_the_run_with_one_line(runs: TrainingFolder, tmp_path: Path) -> None:
    config = json.loads(ZERO2.read_text())
    config["fp16"] |= {"initial_scale_power": 3, "min_loss_scale": 4, "hysteresis": 1}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    argv = [*runs.argv("floor", *SMALL_BATCH, "train.fp16_on_cpu=true"), "--deepspeed", str(tmp_path / "ds.json")]
    (result,) = run_ranks(1, train_with_loss, argv, infinite_gradient)
    assert result.exit_code == FAILED and "Traceback" not in result.stderr, all_output([result])
    line = "error: update 2: 5 fp16 overflows in a row with the loss scale at fp16.min_loss_scale=4; lower "
    assert last_error_line(result).startswith(line), all_output([result])


# --- through the launcher ---


def launch(argv: list[str]) -> subprocess.Popen[str]:
    """Two ranks through the `deepspeed` command, in a process group of their own, ready for SIGUSR1 to all of it."""
    binaries = Path(sys.executable).parent
    words = ["env", "--ignore-signal=USR1", str(binaries / "deepspeed"), "--num_gpus", "2"]
    words += ["--master_port", str(free_port()), "launch/train.py", *argv]
    environment = os.environ | CPU_ONLY | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT, start_new_session=True
    )


def read_until(started: subprocess.Popen[str], words: str) -> str:
    """Reads what it prints up to a line with these words."""
    assert started.stdout is not None
    lines = []
    for line in started.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def ranks_of(started: subprocess.Popen[str]) -> list[psutil.Process]:
    """In order of rank. A short command that a rank has started may end in between."""
    ranks: dict[psutil.Process, int] = {}
    for process in psutil.Process(started.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie's error, too
            rank = process.environ().get("RANK")
            if rank is not None and process.ppid() not in {other.pid for other in ranks}:  # not the loaders' workers
                ranks[process] = int(rank)
    return sorted(ranks, key=ranks.__getitem__)


def end_of(started: subprocess.Popen[str]) -> tuple[int, list[str], float]:
    """Exit code, the lines that the launcher has not written itself, and the seconds that it took."""
    begin = time.monotonic()
    try:
        out, _ = started.communicate(timeout=240)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    lines = [line for line in out.splitlines() if line.strip() and "[launch.py:" not in line]
    return started.returncode, lines, time.monotonic() - begin


@pytest.mark.slow
def test_the_launcher_s_group_stops_in_good_order_and_a_killed_rank_of_the_next_start_ends_it(
    runs: TrainingFolder,
) -> None:
    argv = runs.argv("launched", *SMALL_BATCH, "train.max_steps=100000", "data.workers=1", "log.every=1")
    started = launch(argv)
    read_until(started, "step ")
    os.killpg(started.pid, signal.SIGUSR1)
    code, lines, _ = end_of(started)
    assert code == STOPPED, lines
    (checkpoint,) = runs.run_dir("launched").glob("checkpoint-*")
    assert lines[-1].endswith(f"by SIGUSR1: checkpoint {checkpoint}; continue with the same command"), lines

    started = launch(argv)
    read_until(started, f"resuming from {checkpoint} at update ")
    read_until(started, "step ")
    first, second = ranks_of(started)
    second.kill()
    begin = time.monotonic()
    psutil.wait_procs([first], timeout=60)
    alone = time.monotonic() - begin
    code, lines, seconds = end_of(started)
    print(
        f"{alone:.1f} s after one rank was killed the other had ended, {seconds:.1f} s later the launcher, with {code}"
    )
    assert code in (FAILED, 247) and alone < 30  # on a busy machine the launcher takes its time to leave
    assert lines[-1].startswith(f"error: rank 1 (process {second.pid}) "), lines
    assert not first.is_running()
