"""launch/compare.py: settings that differ, results side by side, one picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from distill.config.recipes import dump_recipe, load_recipe
from distill.tracking.journal import Journal, metric_record
from launch import compare


def make_run(folder: Path, name: str, *overrides: str) -> Path:
    run = folder / name
    (run / "previews").mkdir(parents=True)
    dump_recipe(load_recipe(None, [f"run_root={folder}", f"name={name}", *overrides]), run / "recipe.yaml")
    journal = Journal(run / "metrics.jsonl")
    journal.append(metric_record({"loss": 0.5, "samples_per_second": 4.0}, 5))  # an earlier version's names
    journal.append(metric_record({"train/loss": 0.25, "eval/exact_match": 0.75, "speed/samples_per_second": 8.0}, 10))
    Image.new("RGB", (16, 16)).save(run / "previews" / "step-0000010.png")
    return run


@pytest.mark.heavy
def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "b", "train.learning_rate=2e-4", "lora.rank=8")]
    evaluated = {"rows": [{"role": "student", "steps": 4, "exact_match": 0.9}, {"role": "teacher", "steps": 50}]}
    (runs[1] / "summary.json").write_text(json.dumps(evaluated))
    out = tmp_path / "new" / "both.png"
    assert compare.main([*map(str, runs), "--out", str(out)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == ["setting a b", lines[1], "lora.rank 64 8", "train.learning_rate 0.0001 0.0002"]
    for line in (
        "updates 10 of 1000 10 of 1000",
        "loss, last 0.25000 0.25000",
        "spelling, best 0.750 (update 10) 0.750",
    ):
        assert any(found.startswith(line) for found in lines), line
    assert "evaluated, 4 steps: spelling - 0.900" in lines and lines[-1] == f"wrote {out}"
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 600


def test_wrong_runs_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "a")
    cases = {
        (str(run),): "one run cannot be compared",
        (str(run), f"{run}/../a"): "one run cannot be compared",
        (str(run), str(tmp_path / "none")): "there is no such folder",
        (str(run), str(tmp_path)): "is no folder of a run",
        (str(run), str(make_run(tmp_path, "b")), "--out", str(tmp_path / "x.jpg")): "name a file that ends in .png",
    }
    for argv, words in cases.items():
        assert compare.main(list(argv)) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ") and words in line and not captured.out
