"""What a person sees on a run's page in MLflow: description, data set, pictures, models, and what is first."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from distill.config.recipes import dump_recipe, load_recipe
from distill.config.schema import TrackingConfig
from distill.tracking.evaluation_record import record_evaluation
from distill.tracking.links import run_page, server_command
from distill.tracking.run_notes import final_notes, first_notes
from distill.tracking.tracker import Tracker
from tests.helpers.tracking import FAST

FACTS = {"trained_parameters": 1234, "ranks": 1, "device": "cpu", "precision": "fp32"}


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("http://tracking:5000/", "http://tracking:5000/#/experiments/7/runs"),
        ("https://host/path", "https://host/path/#/experiments/7/runs"),
        ("sqlite:////runs/mlflow.db", "http://127.0.0.1:5000/#/experiments/7/runs"),
    ],
)
def test_the_link_opens_the_curves(uri: str, page: str) -> None:
    assert (
        run_page(uri, "7", "ab") == f"{page}?viewStateShareKey=ab&compareRunsMode=CHART&workflowType=machine_learning"
    )
    assert ("mlflow ui" in server_command(uri)) == uri.startswith("sqlite")


def test_there_is_no_link_without_a_run() -> None:
    assert run_page("http://x", "", "") == run_page("", "", "") == run_page("postgresql://x", "1", "ab") == ""


@pytest.mark.heavy
def test_the_page_of_a_run_and_of_its_evaluation(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(
        "sys.argv", ["launch/train.py", "--local_rank=0", "--deepspeed", "zero2.json", "train.max_steps=2"]
    )
    data = run_dir / "data" / "data.json"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    recipe = load_recipe(None, [f"run_root={run_dir.parent}", f"name={run_dir.name}"])
    dump_recipe(recipe, run_dir / "recipe.yaml")
    notes = lambda: first_notes(recipe, FACTS, [data], 48)  # noqa: E731
    tracker = Tracker(run_dir, TrackingConfig(), {"lr": 1}, timing=FAST, notes=notes)
    tracker.record_params()
    for step in (1, 2):
        tracker.log({"train/loss": 1.0 / step, "eval/exact_match": step / 4, "eval/ned": 0.5}, step)
        Image.new("RGB", (8, 8)).save(run_dir / f"{step}.png")
        tracker.artifact(run_dir / f"{step}.png", "", "at a glance/previews", step)
    (run_dir / "3.png").write_bytes(b"half a picture")
    tracker.artifact(run_dir / "3.png", "", "at a glance/previews", 3)
    for _ in range(2):  # as a start that has nothing to do
        for note in final_notes(recipe, FACTS, 2, 1, 0.25):
            tracker.note(note)
    report = tracker.finish()
    assert (report.unsent, report.counts["malformed"], report.counts.get("refused")) == (0, 1, None)
    assert f"/runs?viewStateShareKey={tracker.run_id}&" in tracker.page

    client = MlflowClient(tracker.uri)
    run = client.get_run(tracker.run_id)
    assert run.data.metrics["at a glance/loss"] == 0.5 and run.data.metrics["at a glance/spelling"] == 0.5
    first, *_ = sorted(name.rsplit("/", 1)[0] for name in run.data.metrics)
    assert first == "at a glance"  # MLflow's page has the sections in this order
    view = json.loads(client.get_experiment(run.info.experiment_id).tags[f"mlflow.sharedViewState.{tracker.run_id}"])
    assert [section["name"] for section in view["compareRunSections"]][:3] == ["at a glance", "train", "eval"]
    assert [chart.get("step") for chart in view["compareRunCharts"]] == [None, None, 2]  # the newest preview
    tags = run.data.tags
    assert "**consistency** student" in tags["mlflow.note.content"] and "best spelling" in tags["mlflow.note.content"]
    assert "deepspeed launch/train.py --deepspeed zero2.json train.max_steps=2\n" in tags["mlflow.note.content"]
    assert tags["mlflow.source.name"] == "launch/train.py"
    (dataset,) = run.inputs.dataset_inputs
    assert json.loads(dataset.dataset.profile)["samples"] == 48 and len(dataset.dataset.digest) == 12
    pictures = [file.path for file in client.list_artifacts(tracker.run_id, "images")]
    assert sum("+step+2+" in path and path.endswith(".png") for path in pictures) == 1
    assert not any("+step+3+" in path for path in pictures)

    assert _models(client, run) == {"checkpoint-1": "best", "checkpoint-2": "model"}
    child = _evaluated(run_dir, 2)
    together = client.search_runs([run.info.experiment_id], view["searchFilter"])
    assert {one.info.run_id for one in together} == {tracker.run_id, child}
    (model,) = [
        m for m in client.search_logged_models([run.info.experiment_id]) if m.tags["checkpoint"] == "checkpoint-2"
    ]
    assert [(m.key, m.value, m.run_id) for m in model.metrics] == [("student-4/ned", 0.75, child)]
    assert len(_models(client, run)) == 2  # the evaluation has found the training's
    assert "eval~grid of teacher and student" in str([f.path for f in client.list_artifacts(tracker.run_id, "images")])


def _models(client: Any, run: Any) -> dict[str, str]:
    found = client.search_logged_models([run.info.experiment_id])
    return {model.tags["checkpoint"]: model.tags["artifacts"].rsplit("/", 1)[-1] for model in found}


def _evaluated(run_dir: Path, step: int) -> str:
    grid = run_dir.parent / "grid.png"
    Image.new("RGB", (8, 8)).save(grid)
    checkpoint = run_dir / f"checkpoint-{step}"
    return record_evaluation(
        run_dir, TrackingConfig(), checkpoint, step, {"student-4/ned": 0.75}, {}, [grid], timing=FAST
    )


def test_a_data_set_that_went_away_is_said(run_dir: Path) -> None:
    said: list[str] = []
    recipe = load_recipe(None, [f"run_root={run_dir.parent}", f"name={run_dir.name}"])
    options = SimpleNamespace(enabled=False, uri="", experiment="e")
    tracker = Tracker(run_dir, options, {}, say=said.append)
    tracker._record_notes(lambda: first_notes(recipe, FACTS, [run_dir / "none.json"], 0))
    tracker.finish()
    assert len(said) == 1 and "lacks its data set" in said[0] and "none.json" in said[0]
