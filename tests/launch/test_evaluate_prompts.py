"""launch/evaluate.py --prompts: what it writes and refuses, and the prompts that the documents measure with."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from anytext2.glyphs.fonts import load_font_table
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.loading import SamplingModel, load_sampling_model
from distill.inference.model import make_model
from distill.inference.pipeline import drawing_limits
from distill.inference.preparation import RequestPreparation
from distill.inference.prompt_file import read_prompts
from launch import evaluate
from tests.helpers.paths import ROOT
from tests.helpers.stored_run import write_run

EXAMPLES = ROOT / "docs" / "examples" / "prompts_100.jsonl"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> SamplingModel:
    folder = tmp_path_factory.mktemp("run")
    changes = ["data.options.resolution=64", f"run_root={folder}", "name=run", "tracking.enabled=false"]
    recipe = load_recipe(DEFAULT_RECIPE, changes)
    torch.manual_seed(0)
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    return load_sampling_model(folder / "run", None)


@pytest.mark.heavy
def test_a_file_of_prompts_is_measured(opened, tmp_path, monkeypatch, capsys):
    pytest.importorskip("rapidocr_onnxruntime")
    monkeypatch.setattr(evaluate, "load_sampling_model", lambda *_: opened)
    box = ["4,16,60,48"]
    lines = [{"prompt": '"GO"', "boxes": box}, {"prompt": '"A" "B"', "boxes": box}, {"prompt": '"上"', "boxes": box}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    argv = ["--run", "run", "--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "out")]
    steps = ["--teacher-steps", "1", "--student-steps", "1,2", "--guidance", "1"]
    assert evaluate.main([*argv, *steps, "--ocr", "rapidocr", "--ocr", "own"]) == 2
    printed = capsys.readouterr().out
    assert "prompt000002: places: 1 for 2 texts" in printed and "1 of 3 prompts cannot be drawn" in printed
    assert "read by rapidocr:" in printed and "read by own:" in printed and "Chinese (1)" in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [(row["role"], row["steps"], row["nfe"]) for row in summary["rows"]] == [
        ("teacher", 1, 1),
        ("student", 1, 1),
        ("student", 2, 2),
    ]
    assert [picture["name"] for picture in summary["prompts"]] == ["prompt000001", "prompt000003"]
    assert list(summary["refused"]) == ["prompt000002"] and set(summary["ocr_engines"]) == {"rapidocr", "own"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grid.png", "sheet.png", "summary.json"]
    assert evaluate.main([*argv, *steps, "--first", "3"]) == 2
    assert "--first 3: the file has 3 prompts, 0 to 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompts", "none.jsonl"], "--prompts none.jsonl: no such file"),
        (["--prompts", str(EXAMPLES), "--no-ocr"], "--no-ocr: free prompts are not measured with it"),
        (
            ["--prompts", str(EXAMPLES), "--undistilled-steps", "4"],
            "--undistilled-steps: free prompts are not measured",
        ),
        (["--prompts", str(EXAMPLES), "--data", str(EXAMPLES)], "--data: free prompts are not measured with it"),
        (["--ocr", "own", "--ocr", "rapidocr"], "--ocr: 2 engines; several read free prompts only (--prompts)"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(monkeypatch, capsys, argv, message):
    monkeypatch.setattr(evaluate, "load_sampling_model", lambda *_: pytest.fail("loaded"))
    assert evaluate.main(["--run", "run", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.heavy
def test_the_hundred_prompts_are_such_as_the_tiny_model_can_draw():
    """1 to 3 lines, Latin and Chinese, without places; no letters are smaller than the tiny model writes."""
    recipe = load_recipe(DEFAULT_RECIPE)
    prepare = RequestPreparation(recipe, load_font_table(), 16, drawing_limits(recipe))
    prompts = read_prompts(EXAMPLES, {})
    assert all(set(prompt.request.to_json()) <= {"prompt", "seed", "colors"} for prompt in prompts)
    drawings = [prepare(prompt.request) for prompt in prompts]
    assert Counter(len(drawing.lines) for drawing in drawings) == {1: 40, 2: 40, 3: 20}
    assert Counter(line.language for drawing in drawings for line in drawing.lines) == {"Latin": 116, "Chinese": 64}
    assert {note.split(",")[0] for drawing in drawings for note in drawing.warnings} == {"the description is Chinese"}
    assert len({line.text for drawing in drawings for line in drawing.lines}) > 140
