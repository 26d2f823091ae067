"""launch/status.py: how a run stands, from its folder alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.checkpoint.run_lock import RunLock, lock_holder
from distill.config.recipes import dump_recipe, load_recipe
from distill.tracking.journal import Journal, metric_record
from distill.tracking.progress import write_progress
from launch import status

HOLDS = "import sys, time; from pathlib import Path; from distill.checkpoint.run_lock import RunLock\n"
HOLDS += "lock = RunLock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as update 25 of 40 leaves it, half of it in the names of an earlier version."""
    run = tmp_path / "demo"
    for name in ("checkpoint-10", "checkpoint-20", "previews"):
        (run / name).mkdir(parents=True)
    dump_recipe(load_recipe(None, [f"run_root={tmp_path}", "name=demo", "train.max_steps=40"]), run / "recipe.yaml")
    journal = Journal(run / "metrics.jsonl")
    journal.append(metric_record({"loss": 0.5, "samples_per_second": 4.0}, 5))
    new = {"train/loss": 0.25, "speed/samples_per_second": 12.0, "system/tree_rss_gib": 2.5}
    journal.append(metric_record(new | {"eval/exact_match": 0.75, "health/skipped_updates": 3}, 25))
    Journal(run / "status.jsonl").append({"status": "RUNNING"})
    (run / "best").write_text("checkpoint-20\n0.75\n")
    (run / "previews" / "step-0000020.png").touch()
    return run


def test_a_run_that_was_killed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert status.main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: was killed, update 25 of 40 (62.5 %)",
        "loss 0.25000 at update 25; spelling 0.750 at update 25",
        "trouble: 3 skipped updates, 0 checkpoints that could not be written",
        "speed: 12.0 samples/s, 4.00 s an update",
        "memory: 2.5 GiB held by the run",
        "saved: checkpoint-20; best checkpoint-20",
        f"pictures: {run}/previews/step-0000020.png",
        "at the next signal: nothing, no process trains here; the same command goes on from checkpoint-20",
    ]
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


@pytest.mark.process
def test_a_run_that_trains(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", "/nowhere")
    write_progress(run, {"phase": "training", "update": 25, "seconds_left": 595.0, "not_counted": "1 preview"})
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(run)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert f"process {process.pid} on" in lock_holder(run)
        assert status.main([str(run)]) == 0
        process.kill()
    out = capsys.readouterr().out
    assert f"{run}: training, update 25 of 40 (62.5 %), written 00:0" in out and f"by process {process.pid} on" in out
    assert "; ends in 09:5" in out and out.count(", without 1 preview") == 1
    assert "update 26 is finished and saved, exit code 75" in out
    assert "what was learned since checkpoint-20 (5 updates) is lost" in out
    assert "SLURM job 12: squeue does not answer here; `scancel --signal=USR1 12`" in out
    time.sleep(0.1)
    assert lock_holder(run) == ""


def test_asking_takes_no_lock(run: Path) -> None:
    (run / ".lock").touch()
    assert lock_holder(run) == ""
    RunLock(run).take()


@pytest.mark.parametrize(("folder", "words"), [("nowhere", "there is no such folder"), (".", "is no folder of a run")])
def test_a_folder_of_no_run_is_one_line(
    tmp_path: Path, folder: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main([str(tmp_path / folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / folder}: ") and words in line
