"""Tracking: a real MLflow store, outages included; local files are never behind."""

from __future__ import annotations

import errno
import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.tracking import upload_state
from distill.tracking.journal import Journal
from distill.tracking.progress import duration, progress_line
from distill.tracking.tracker import Tracker, environment, flatten, git_revision
from distill.tracking.uploader import Timing
from tests.helpers.run_records import read_metrics
from tests.helpers.tracking import DEAD_SERVER, FAST


def _options(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"enabled": True, "uri": "", "experiment": "test"} | changes))


def _stored(tracker: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def _history(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(m.step, m.value) for m in MlflowClient(tracker.uri).get_metric_history(tracker.run_id, name)]


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_everything_arrives_in_the_default_store(run_dir: Path) -> None:
    said: list[str] = []
    params = {"recipe": {"train": {"lr": 1e-4}, "long": "x" * 7000}, "deepspeed": {"zero_optimization": {"stage": 2}}}
    tracker = Tracker(run_dir, _options(), params, say=said.append, timing=FAST)
    assert tracker.run_id  # known at once, so that a summary can name it
    for step in range(1, 4):
        tracker.log({"train/loss": 1.0 / step, "grad norm #1": float(step)}, step)
    picture = run_dir / "preview.png"
    picture.write_bytes(b"png")
    (run_dir / "adapter").mkdir()
    (run_dir / "adapter" / "adapter_config.json").write_text("{}")
    tracker.artifact(picture, "previews")
    tracker.artifact(run_dir / "adapter", "adapter")
    report = tracker.finish()

    run = _stored(tracker)
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["recipe.train.lr"] == "0.0001"
    assert run.data.params["deepspeed.zero_optimization.stage"] == "2"
    assert len(run.data.params["recipe.long"]) == 6000
    assert _history(tracker, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.metrics["grad norm _1"] == 3.0  # a name that MLflow would refuse
    stored = run_dir.parent / "mlartifacts" / tracker.run_id / "artifacts"
    assert (stored / "previews" / "preview.png").read_bytes() == b"png"
    assert (stored / "adapter" / "adapter_config.json").is_file()
    assert (report.failures, report.unsent, report.run_id) == (0, 0, tracker.run_id)
    assert report.counts == {"params": 1, "metrics": 3, "status": 2, "artifacts": 2, "shortened": 1}
    assert said == []


def test_resume_continues_the_same_run(run_dir: Path) -> None:
    first = Tracker(run_dir, _options(), {"lr": 1, "seed": 5}, timing=FAST)
    first.log({"train/loss": 1.0}, 1)
    first.finish("KILLED")
    assert _stored(first).info.status == "KILLED"
    second = Tracker(run_dir, _options(), {"lr": 2, "seed": 5, "new": 3}, timing=FAST)
    second.log({"train/loss": 0.5}, 2)
    second.finish()
    assert second.run_id == first.run_id
    run = _stored(second)
    assert run.info.status == "FINISHED"
    assert _history(second, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert run.data.params == {"lr": "1", "seed": "5", "new": "3"}
    assert run.data.tags["resumed.lr"] == "2" and "resumed.seed" not in run.data.tags


def test_parameters_are_those_of_the_attempt_that_trains(run_dir: Path) -> None:
    def attempt(steps: int, *logged: int) -> Tracker:
        params = {"recipe": {"tracking": {"uri": "", "experiment": "test"}, "train": {"max_steps": steps}}}
        tracker = Tracker(run_dir, _options(), params, say=said.append, timing=FAST)
        if logged:
            tracker.record_params()
        for step in logged:
            tracker.log({"train/loss": 1.0}, step)
        tracker.finish("FINISHED" if logged else "FAILED")
        return tracker

    said: list[str] = []
    refused = attempt(7)  # by the audit, before the first step
    assert _stored(refused).data.params == {"recipe.tracking.uri": "", "recipe.tracking.experiment": "test"}
    assert _stored(attempt(10, 1, 2)).data.params["recipe.train.max_steps"] == "10" and said == []
    attempt(5)  # has nothing to do
    assert not any(name.startswith("resumed.") for name in _stored(refused).data.tags) and said == []
    run = _stored(attempt(20, 3))
    assert run.data.params["recipe.train.max_steps"] == "10"  # which MLflow cannot change
    assert run.data.tags["resumed.recipe.train.max_steps"] == "20"
    assert len(said) == 1 and "shows train.max_steps as it was when this run began" in said[0]


def test_another_folder_can_continue_a_run_by_its_id(run_dir: Path) -> None:
    first = Tracker(run_dir, _options(), {}, timing=FAST)
    first.finish()
    second = Tracker(run_dir.parent / "moved", _options(), {}, run_id=first.run_id, timing=FAST)
    second.finish()
    assert second.run_id == first.run_id


def test_a_run_that_mlflow_lost_is_sent_again(run_dir: Path, empty_store: Path) -> None:
    first = Tracker(run_dir, _options(), {"lr": 1}, timing=FAST)
    first.log({"train/loss": 1.0}, 1)
    first.finish()
    store = run_dir.parent / "other.db"
    shutil.copy(empty_store, store)
    (state,) = json.loads((run_dir / "tracking.json").read_text())["targets"].values()
    (run_dir / "tracking.json").write_text(json.dumps({"targets": {f"sqlite:///{store}": state}}))
    said: list[str] = []
    second = Tracker(run_dir, _options(uri=f"sqlite:///{store}"), {"lr": 1}, say=said.append, timing=FAST)
    second.log({"train/loss": 0.5}, 2)
    second.finish()
    assert second.run_id != first.run_id and len(said) == 1 and "has no run" in said[0]
    assert _history(second, "train/loss") == [(1, 1.0), (2, 0.5)]


def test_dead_server_costs_one_line_and_no_data(run_dir: Path) -> None:
    said: list[str] = []
    began = time.monotonic()
    tracker = Tracker(run_dir, _options(uri=DEAD_SERVER), {"lr": 1}, say=said.append, timing=FAST)
    logging_time = time.monotonic()
    for step in range(200):
        tracker.log({"train/loss": float(step)}, step)
    assert time.monotonic() - logging_time < 1.0  # nothing waits for the server
    report = tracker.finish("FAILED", timeout=20)
    assert time.monotonic() - began < 20
    assert tracker.run_id == "" and report.failures >= 2 and report.unsent == 203
    assert len(said) == 2 and "does not answer" in said[0] and "203 records did not reach" in said[1]
    assert [m["train/loss"] for m in read_metrics(run_dir)] == [float(i) for i in range(200)]


def test_an_outage_in_the_middle_is_made_up_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    down = False
    log_batch = MlflowClient.log_batch

    def flaky(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        if down:
            raise ConnectionError("no route\nto host")
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    tracker = Tracker(run_dir, _options(), {}, say=said.append, timing=FAST)
    tracker.log({"train/loss": 0.0}, 0)
    _until(lambda: _history(tracker, "train/loss") == [(0, 0.0)])
    down = True
    for step in range(1, 30):
        tracker.log({"train/loss": float(step)}, step)
    _until(lambda: len(said) == 1)
    assert "does not answer" in said[0] and said[0].endswith("no route to host")
    down = False
    _until(lambda: len(said) == 2)
    assert said[1].endswith("answers again")
    report = tracker.finish()
    assert report.unsent == 0 and report.failures >= 1
    assert _history(tracker, "train/loss") == [(step, float(step)) for step in range(30)]


def test_one_refused_record_does_not_hold_up_the_others(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    log_batch = MlflowClient.log_batch

    def picky(self: MlflowClient, run_id: str, metrics: Any = (), **kwargs: Any) -> Any:
        if any(metric.step == 3 for metric in metrics):
            raise MlflowException("step three", error_code=INVALID_PARAMETER_VALUE)
        return log_batch(self, run_id, metrics=metrics, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", picky)
    said: list[str] = []
    tracker = Tracker(run_dir, _options(), {}, say=said.append, timing=FAST)
    for step in range(6):
        tracker.log({"train/loss": float(step)}, step)
    report = tracker.finish()
    assert report.counts["refused"] == 1 and report.unsent == 0
    assert len(said) == 1 and "refuses a record" in said[0] and "step three" in said[0]
    assert [step for step, _ in _history(tracker, "train/loss")] == [0, 1, 2, 4, 5]
    assert len(read_metrics(run_dir)) == 6


def test_an_artifact_that_is_gone_is_counted(run_dir: Path) -> None:
    tracker = Tracker(run_dir, _options(), {}, timing=Timing(send=30, system=0))
    file = run_dir / "checkpoint.bin"
    file.write_bytes(b"x")
    tracker.artifact(file)
    file.unlink()
    assert tracker.finish().counts["absent artifacts"] == 1


def test_a_folder_that_cannot_note_what_was_sent(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload_state, "write_text_atomically", full)
    said: list[str] = []
    tracker = Tracker(run_dir, _options(), {}, say=said.append, timing=FAST)
    for step in range(3):
        tracker.log({"train/loss": 1.0}, step)
        time.sleep(0.1)
    report = tracker.finish()
    assert report.failures == 0 and report.counts["metrics"] == 3 and report.unsent == 0
    assert len(said) == 1 and "tracking.json cannot be written (No space left" in said[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"targets": 3}', '{"targets": {"x": {"run_id": 1, "sent": {}}}}'])
def test_a_note_that_cannot_be_read_is_said_and_everything_is_sent(run_dir: Path, text: str) -> None:
    run_dir.mkdir()
    (run_dir / "tracking.json").write_text(text)
    said: list[str] = []
    state = upload_state.UploadState(run_dir, said.append)
    assert state.load("x") is None and state.load("x") is None
    assert len(said) == 1 and "is not readable" in said[0]
    state.store("x", "run", {"metrics": 5})
    assert upload_state.UploadState(run_dir, said.append).load("x") == ("run", {"metrics": 5}) and len(said) == 1


@pytest.mark.heavy
def test_system_metrics_are_local_and_in_mlflow(run_dir: Path) -> None:
    tracker = Tracker(run_dir, _options(), {}, timing=Timing(send=0.05, system=0.05))
    tracker.log({"train/loss": 1.0}, 7)
    _until(lambda: len(Journal(run_dir / "system.jsonl").read()[0]) >= 2)
    tracker.finish()
    names = set(_stored(tracker).data.metrics)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names


def test_switched_off_mlflow_leaves_the_local_files(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", _options(enabled=False), {"a": {"b": 1}})
    tracker.log({"train/loss": 1.5}, 1)
    report = tracker.finish()
    assert (tracker.run_id, tracker.uri, report.unsent) == ("", "", 0)
    assert read_metrics(tmp_path / "run")[0]["train/loss"] == 1.5
    assert Journal(tmp_path / "run" / "params.jsonl").read()[0][0]["params"] == {"a.b": "1"}
    assert not (tmp_path / "mlflow.db").exists()


def test_not_a_number_survives_locally_and_in_mlflow(run_dir: Path) -> None:
    tracker = Tracker(run_dir, _options(), {}, timing=FAST)
    tracker.log({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    tracker.finish()
    line = read_metrics(run_dir)[0]
    assert math.isnan(line["a"]) and line["b"] == math.inf and line["c"] == -math.inf
    assert math.isnan(_stored(tracker).data.metrics["a"]) and _stored(tracker).data.metrics["b"] > 1e300
    for text in (run_dir / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# --- text ---


@dataclass
class _Section:
    lr: float
    names: list[str]


def test_flatten() -> None:
    nested = {"train": _Section(0.1, ["a", "b"]), "data": [{"p": 1}, {"p": None}], "empty": {}, "flag": True}
    assert flatten(nested) == {
        "train.lr": "0.1",
        "train.names": "['a', 'b']",
        "data.0.p": "1",
        "data.1.p": "None",
        "empty": "{}",
        "flag": "True",
    }
    assert flatten({}) == {}


@pytest.mark.process
def test_git_revision(tmp_path: Path) -> None:
    assert git_revision(tmp_path) == "unknown"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "x")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "f").write_text("2")
    assert git_revision(tmp_path) == clean + "-dirty"


def test_environment_names_what_numbers_depend_on() -> None:
    import torch

    found = environment()
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"git", "python", "platform", "cpus", "gpus"} <= set(found)


def test_progress_line() -> None:
    line = progress_line(50, 2000, 0.0123456, 1e-4, 31.42, 3725.4)
    assert line == "step   50/2000    2.5 %  loss 0.01235  lr 1.00e-04    31.4 samples/s  ETA 1:02:05"
    assert progress_line(2000, 2000, math.nan, 0.0, 0.0, None).endswith("ETA --:--")
    assert progress_line(0, 0, 1.0, 0.0, 0.0, math.inf).endswith("ETA --:--")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (75, "01:15"), (3599.6, "1:00:00"), (90061, "1d 01:01:01"), (-5, "00:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
