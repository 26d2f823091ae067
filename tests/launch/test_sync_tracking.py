"""launch/sync_tracking.py: what is left of a run's journals reaches MLflow, and no more than that."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.tracking.tracker import Tracker
from distill.tracking.upload_state import LOCK
from launch.sync_tracking import main
from tests.helpers.tracking import DEAD_SERVER, FAST


def recorded(run_dir: Path, uri: str = "", enabled: bool = True, end: str = "FINISHED") -> None:
    """A run of three steps; end: '' for one that is killed."""
    options = SimpleNamespace(enabled=enabled, uri=uri, experiment="synced")
    told = {"recipe": {"tracking": {"uri": uri, "experiment": "synced"}}}
    tracker = Tracker(run_dir, options, told, say=lambda line: None, timing=FAST)
    for step in (1, 2, 3):
        tracker.log({"train/loss": 1.0 / step}, step)
    (run_dir / "audit.png").write_bytes(b"png")
    tracker.artifact(run_dir / "audit.png")
    tracker.finish(end or "KILLED", timeout=5)
    if not end:
        first, _ = (run_dir / "status.jsonl").read_text().splitlines(keepends=True)
        (run_dir / "status.jsonl").write_text(first)


def only_run(store: Path):  # type: ignore[no-untyped-def]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    (run,) = client.search_runs([client.get_experiment_by_name("synced").experiment_id])
    steps = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    return run


def journal_time(run_dir: Path, name: str, line: int) -> int:
    return int(1000 * json.loads((run_dir / f"{name}.jsonl").read_text().splitlines()[line])["time"])


@pytest.mark.heavy
def test_a_run_that_ended_in_an_outage(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(run_dir, DEAD_SERVER, end="FAILED")
    store = run_dir.parent / "mlflow.db"
    assert main([str(run_dir), "--timeout", "3"]) == 1  # the server that the run was told is still away
    out = capsys.readouterr().out
    assert "8 left" in out and "does not answer" in out and "sync_tracking" not in out
    assert main([str(run_dir), "--uri", f"sqlite:///{store}"]) == 0
    out = capsys.readouterr().out
    assert "2 params, 3 metrics, 2 status, 1 artifacts sent" in out and "0 left" in out
    run = only_run(store)
    assert run.info.status == "FAILED"
    assert run.info.artifact_uri.startswith((store.parent / "mlartifacts").as_uri()), "not under the present folder"
    assert run.info.start_time == journal_time(run_dir, "params", 0)
    assert run.info.end_time == journal_time(run_dir, "status", -1)
    assert main([str(run_dir), "--uri", f"sqlite:///{store}"]) == 0  # nothing is left to send
    assert "nothing sent" in capsys.readouterr().out and only_run(store).info.run_id == run.info.run_id


def test_a_run_with_tracking_switched_off_and_a_second_store(run_dir: Path, empty_store: Path) -> None:
    recorded(run_dir, enabled=False)
    assert not (run_dir / "tracking.json").exists()
    assert main([str(run_dir)]) == 0
    first = only_run(run_dir.parent / "mlflow.db")
    stored = run_dir.parent / "mlartifacts" / first.info.run_id / "artifacts" / "audit.png"
    assert first.info.status == "FINISHED" and stored.read_bytes() == b"png"
    other = run_dir.parent / "other.db"
    shutil.copy(empty_store, other)
    assert main([str(run_dir), "--uri", f"sqlite:///{other}"]) == 0
    assert only_run(other).info.run_id != first.info.run_id
    assert main([str(run_dir)]) == 0  # the first is still known
    assert only_run(run_dir.parent / "mlflow.db").info.run_id == first.info.run_id


def test_a_killed_run_is_recorded_as_killed_at_its_last_line(run_dir: Path) -> None:
    recorded(run_dir, enabled=False, end="")
    assert main([str(run_dir)]) == 0
    run = only_run(run_dir.parent / "mlflow.db")
    assert run.info.status == "KILLED" and run.info.end_time == journal_time(run_dir, "artifacts", -1)


def test_a_folder_without_journals_and_a_bad_timeout(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir.mkdir()
    assert main([str(run_dir), str(run_dir / "no")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("no journals here" in line for line in lines)
    assert main([str(run_dir), "--timeout", "0"]) == 2
    assert "--timeout 0 must be positive" in capsys.readouterr().err


@pytest.mark.heavy
def test_a_refusal_ends_at_once_with_the_remedy_of_this_command(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    recorded(run_dir, enabled=False)
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("synced"))
    began = time.monotonic()
    for given, words in (
        (["--uri", store], "experiment 'synced' is deleted"),
        (["--uri", "htp://host:5000"], "--uri must begin with http://"),
        (["--uri", "postgresql+nothing://host/db"], "--uri must begin with http://"),
    ):
        assert main([str(run_dir), "--timeout", "30", *given]) == 2
        out, error = capsys.readouterr()
        (line,) = error.splitlines()
        assert line.startswith(f"error: {run_dir}: MLflow cannot be used: ") and words in line and not out
        assert "sync_tracking" not in line
    assert time.monotonic() - began < 30.0  # an outage is waited for
    assert main([str(run_dir), "--uri", store, "--experiment", "another"]) == 0


@pytest.mark.process
def test_a_living_run_is_left_alone_and_a_killed_one_leaves_no_lock(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(run_dir, enabled=False)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:  # holds the lock as a run does, until it is killed
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        os.write(told, b"x")
        time.sleep(600)
        os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        assert main([str(run_dir)]) == 2
        assert "sends by itself" in capsys.readouterr().err and not (run_dir / "tracking.json").exists()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert main([str(run_dir)]) == 0


def test_a_foreign_journal_cannot_have_other_files_sent(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(run_dir, enabled=False)
    secret = run_dir.parent / "secret.txt"
    secret.write_text("secret")
    (run_dir / "link.txt").symlink_to(secret)
    with (run_dir / "artifacts.jsonl").open("a") as file:
        for path in (str(secret), "../secret.txt", "link.txt"):
            file.write(json.dumps({"time": 1.0, "path": path, "folder": ""}) + "\n")
        file.write(json.dumps({"time": 1.0, "path": "audit.png", "folder": "../../../up"}) + "\n")
        file.write('{"time": 1.0}\n[1]\nno json\n')
    assert main([str(run_dir), "--timeout", "100"]) == 0
    out = capsys.readouterr().out
    assert "3 artifacts outside the run folder" in out and "2 malformed" in out
    assert "2 broken" in out
    stored = [path.name for path in (run_dir.parent / "mlartifacts").rglob("*") if path.is_file()]
    assert stored == ["audit.png"] and not list(run_dir.parent.rglob("up"))


def test_a_journal_that_was_cut_after_it_was_sent(run_dir: Path) -> None:
    recorded(run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:2]))
    assert main([str(run_dir)]) == 0
    only_run(run_dir.parent / "mlflow.db")
