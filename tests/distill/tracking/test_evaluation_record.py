"""Evaluations in MLflow: runs below the training run, in a real store; an outage loses none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.checkpoint.run_folder import evaluation_folders
from distill.config.schema import TrackingConfig
from distill.tracking.evaluation_record import record_evaluation
from distill.tracking.tracker import REPORT, Tracker
from launch import sync_tracking
from tests.helpers.tracking import DEAD_SERVER, FAST


@pytest.fixture
def run_dir(run_dir: Path) -> Path:
    """A training run that has ended, in MLflow."""
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text("{}", encoding="utf-8")
    return run_dir


def train(run_dir: Path, **options: Any) -> str:
    tracker = Tracker(run_dir, TrackingConfig(**options), {"lr": 1}, timing=FAST)
    tracker.log({"train/loss": 0.5}, 3)
    tracker.finish()
    return tracker.run_id


def evaluate(run_dir: Path, exact: float, out: Path, say: Any = print, **options: Any) -> str:
    out.mkdir(exist_ok=True)
    files = [out / name for name in ("summary.json", "grid.png", "sheet.png")]
    for file in files:
        file.write_text(json.dumps({"exact": exact}), encoding="utf-8")
    metrics = {"student-4/exact_match": exact}
    params = {"evaluation": {"seed": 3}}
    checkpoint = run_dir / "checkpoint-3"
    return record_evaluation(run_dir, TrackingConfig(**options), checkpoint, 3, metrics, params, files, say, FAST)


def stored(run_dir: Path, run_id: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}").get_run(run_id)


@pytest.mark.heavy
def test_two_evaluations_are_two_runs_below_the_training_s(run_dir: Path, tmp_path: Path) -> None:
    training = train(run_dir)
    ids = [evaluate(run_dir, exact, tmp_path / "out") for exact in (0.25, 0.75)]
    assert len({training, *ids}) == 3
    for number, (run_id, exact) in enumerate(zip(ids, (0.25, 0.75), strict=True), 1):
        run = stored(run_dir, run_id)
        assert run.data.tags["mlflow.parentRunId"] == training
        assert (run.info.run_name, run.info.status) == (f"evaluation-{number}", "FINISHED")
        assert run.data.metrics == {"student-4/exact_match": exact}
        assert run.data.params["evaluation.seed"] == "3"
        artifacts = run_dir.parent / "mlartifacts" / run_id / "artifacts"
        assert sorted(path.name for path in artifacts.iterdir()) == ["grid.png", "sheet.png", "summary.json"]
        assert json.loads((artifacts / "summary.json").read_text())["exact"] == exact
    parent = stored(run_dir, training)
    assert parent.data.metrics == {"train/loss": 0.5, "at a glance/loss": 0.5} and parent.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in parent.data.tags


@pytest.mark.heavy
def test_the_training_s_tracking_report_stays(run_dir: Path, tmp_path: Path) -> None:
    train(run_dir)
    before = (run_dir / REPORT).read_bytes()
    evaluate(run_dir, 0.5, tmp_path / "out")
    assert (run_dir / REPORT).read_bytes() == before
    (folder,) = evaluation_folders(run_dir)
    assert json.loads((folder / REPORT).read_text())["counts"]["metrics"] == 1


@pytest.mark.heavy
def test_an_outage_loses_nothing(run_dir: Path, tmp_path: Path, empty_store: Path) -> None:
    train(run_dir, uri=DEAD_SERVER)
    said: list[str] = []
    for exact in (0.25, 0.75):  # the second one writes over the files of the first
        assert evaluate(run_dir, exact, tmp_path / "out", said.append, uri=DEAD_SERVER) == ""
    assert len(evaluation_folders(run_dir)) == 2 and any("sync_tracking.py" in line for line in said)
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    assert sync_tracking.main([str(evaluation_folders(run_dir)[0]), "--uri", uri]) == 2  # no parent yet
    assert sync_tracking.main([str(run_dir), "--uri", uri]) == 0
    training, *ids = [
        json.loads((folder / "tracking.json").read_text())["targets"][uri]["run_id"]
        for folder in (run_dir, *evaluation_folders(run_dir))
    ]
    for run_id, exact in zip(ids, (0.25, 0.75), strict=True):
        run = stored(run_dir, run_id)
        assert run.data.tags["mlflow.parentRunId"] == training and run.data.metrics["student-4/exact_match"] == exact
        summary = run_dir.parent / "mlartifacts" / run_id / "artifacts" / "summary.json"
        assert json.loads(summary.read_text())["exact"] == exact
