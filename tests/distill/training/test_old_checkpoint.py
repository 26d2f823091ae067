"""A checkpoint of the code before the restructuring is resumed and continues its curve."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill.checkpoint.formats import read_trainer_state
from distill.tracking.metric_names import present_record, read_metrics
from launch import train
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import returned, run_ranks

pytestmark = pytest.mark.process

OLD = ROOT / "tests" / "golden" / "run_before_restructuring"


def test_an_old_run_goes_on_as_it_would_have_then(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "legacy"
    shutil.copytree(OLD / "run", run_dir)
    argv = ["--deepspeed", str(ROOT / "ds_configs" / "zero2_cpu.json"), "--config", str(run_dir / "recipe.yaml")]
    argv += [f"model.config={OLD / 'model.yaml'}", f"run_root={tmp_path / 'runs'}", "train.max_steps=12"]
    results = run_ranks(2, train.main, argv)
    assert returned(results) == [0, 0]
    assert "resuming from" in results[0].stdout and "at update 6" in results[0].stdout
    assert "objective.lcm_step is now objective.teacher_interval" in results[0].stderr

    expected = {row["step"]: present_record(row) for row in json.loads((OLD / "curve.json").read_text())}
    lines = list(read_metrics(run_dir))
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        found = {name: line[name] for name in expected[line["step"]]}
        norms = found.pop("train/grad_norm"), expected[line["step"]].pop("train/grad_norm")
        assert found == pytest.approx(expected[line["step"]], rel=1e-5), line["step"]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # then gradients were summed over the ranks first
    state = read_trainer_state(run_dir / "checkpoint-12")
    assert (state.step, state.batches, state.effective_batch) == (12, 12, 8)
