"""launch/infer.py and launch/evaluate.py on an untrained tiny model: what they write, and what they say of mistakes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.evaluation import ocr_engines
from distill.inference import loading
from distill.inference.loading import SamplingModel, load_sampling_model
from distill.inference.model import make_model
from launch import evaluate, infer
from tests.helpers.stored_run import write_run

SIZE = 64
KEYS = ("teacher-ddim-2", "student-consistency-1", "student-consistency-2")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/: checkpoint-3 (a LoRA of random weights), recipe.yaml, run.json; data/data.json: four pictures."""
    folder = tmp_path_factory.mktemp("workplace")
    write_dataset(folder / "data", 4, SyntheticConfig(size=96), seed=5)
    changes = ["model.weights=scratch", f"data.options.resolution={SIZE}", f"run_root={folder}", "name=run"]
    recipe = load_recipe(DEFAULT_RECIPE, changes)
    recipe.objective = {"name": "consistency", "w_min": 2.0, "w_max": 4.0}
    model = make_model(recipe.model, recipe.seed)
    torch.manual_seed(0)
    for parameter in model.parameters():  # zero convolutions would hide whatever the adapter does
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save(model.state_dict(), folder / "base.pt")
    recipe.model.parts = [str(folder / "base.pt")]
    write_run(folder / "run", recipe, model, tracking_run_id="abc")
    facts = {"ranks": 2, "precision": "fp32", "effective_batch": 48, "optimizer_bytes_per_rank": [10, 12]}
    (folder / "run" / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def opened(workplace: Path) -> SamplingModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's, of what is none of the user's business
        return load_sampling_model(workplace / "run", None)


@pytest.fixture
def reuse(opened: SamplingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is about what follows the loading, the loading is done once for all of them."""
    for module in (infer, evaluate):
        monkeypatch.setattr(module, "load_sampling_model", lambda *_: opened)


def call_infer(workplace: Path, out: Path, *more: str) -> int:
    data = str(workplace / "data" / "data.json")
    return infer.main(["--checkpoint", str(workplace / "run"), "--data", data, "--out", str(out), *more])


def picture(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.mark.heavy
def test_pictures_and_grid_are_written(workplace, tmp_path, capsys):
    more = ["--sample-index", "1", "--count", "2", "--steps", "2", "--steps", "1", "--teacher", "--teacher-steps", "2"]
    assert call_infer(workplace, tmp_path, *more, "--batch", "2") == 0
    names = [f"sample00000{i}-{key}.png" for i in (1, 2) for key in KEYS]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == sorted([*names, "grid.png"])
    drawn = {name: picture(tmp_path / name) for name in names}
    assert all(image.shape == (SIZE, SIZE, 3) for image in drawn.values())
    assert not np.array_equal(drawn[names[0]], drawn[names[2]])
    grid = picture(tmp_path / "grid.png")
    assert grid.shape[0] >= 2 * SIZE and grid.shape[1] >= 5 * SIZE
    printed = capsys.readouterr().out
    assert (
        "teacher 2: 4 UNet calls" in printed and "student 1: 1 UNet calls" in printed and "wrote 6 pictures" in printed
    )


def test_any_number_of_steps_that_the_sampler_can_do(workplace, tmp_path, reuse, capsys):
    assert call_infer(workplace, tmp_path, "--steps", "3", "--steps", "5") == 0
    assert {"sample000000-student-consistency-3.png", "grid.png"} < {path.name for path in tmp_path.iterdir()}
    assert f"recipe: {workplace / 'run' / 'recipe.yaml'}; {SIZE} px" in capsys.readouterr().out
    assert call_infer(workplace, tmp_path, "--steps", "0") == 2
    assert "--steps 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.heavy
def test_the_seed_and_nothing_else_decides(workplace, tmp_path, reuse):
    for name, more in {
        "a": ["--count", "2"],
        "b": ["--sample-index", "1"],
        "c": ["--seed", "1", "--count", "2"],
    }.items():
        assert call_infer(workplace, tmp_path / name, "--steps", "1", *more) == 0
    file = "sample000001-student-consistency-1.png"
    a, b, c = (picture(tmp_path / name / file).astype(int) for name in "abc")
    assert np.abs(a - b).max() <= 1  # a batch of two and of one round differently
    assert np.abs(a - c).max() > 20


def test_the_sampler_of_the_student_can_be_chosen(workplace, tmp_path, reuse, capsys):
    assert call_infer(workplace, tmp_path, "--steps", "2", "--sampler", "phased") == 0
    assert (tmp_path / "sample000000-student-phased-2.png").is_file()
    capsys.readouterr()
    guided = ("--student-guidance", "2", "--negative-prompt", "blurry")
    assert call_infer(workplace, tmp_path, "--steps", "2", "--sampler", "phased", *guided) == 0
    assert "4 UNet calls" in capsys.readouterr().out
    assert call_infer(workplace, tmp_path, "--student-guidance", "0.5") == 2
    assert "guidance=0.5 must be at least 1" in capsys.readouterr().err
    assert call_infer(workplace, tmp_path, "--sampler", "euler") == 2
    assert "ddim" in capsys.readouterr().err


@pytest.mark.heavy
def test_a_merged_student_draws_the_same_pictures_and_the_teacher_beside_it(workplace, tmp_path, reuse, monkeypatch):
    files = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    more = ["--steps", "2", "--teacher", "--teacher-steps", "2"]
    assert call_infer(workplace, tmp_path / "plain", *more) == 0
    monkeypatch.undo()
    assert call_infer(workplace, tmp_path / "merged", *more, "--merge") == 0
    for key in (KEYS[0], KEYS[2]):
        plain, merged = (
            picture(tmp_path / name / f"sample000000-{key}.png").astype(int) for name in ("plain", "merged")
        )
        assert np.abs(plain - merged).max() <= 1, key
    assert {path: path.read_bytes() for path in files} == files


def test_nothing_to_merge_is_refused_before_anything_is_loaded(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "make_model", lambda *_: pytest.fail("what is wrong with the command comes first"))
    recipe = str(workplace / "run" / "recipe.yaml")
    for main in (infer.main, evaluate.main):
        assert main(["--config", recipe, "--merge", "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --merge: {recipe} without --checkpoint has no adapter; name a student's")
        assert error.count("\n") == 1


@pytest.mark.heavy
def test_without_a_checkpoint_the_teacher_is_drawn(workplace, tmp_path):
    data, recipe = str(workplace / "data" / "data.json"), str(workplace / "run" / "recipe.yaml")
    more = ["--teacher-steps", "1", "--guidance", "1", "--out", str(tmp_path)]
    assert infer.main(["--config", recipe, "--data", data, *more]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["grid.png", "sample000000-teacher-ddim-1.png"]


@pytest.mark.heavy
def test_evaluation_writes_a_summary(workplace, tmp_path, capsys):
    pytest.importorskip("rapidocr_onnxruntime")
    argv = ["--run", str(workplace / "run"), "--data", str(workplace / "data" / "data.json"), "--out", str(tmp_path)]
    steps = ["--teacher-steps", "3,2", "--undistilled-steps", "1", "--student-steps", "1,2"]
    assert evaluate.main([*argv, *steps, "--batch", "2", "--grid-rows", "2", "--guidance", "3"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert [(row["role"], row["steps"], row["nfe"]) for row in summary["rows"]] == [
        ("teacher", 3, 6),
        ("teacher", 2, 4),
        ("undistilled", 1, 2),
        ("undistilled", 1, 1),
        ("student", 1, 1),
        ("student", 2, 2),
    ]
    assert summary["pictures"] == 4 and summary["reference"] == "teacher-ddim-3"
    assert summary["rows"][4]["latent_rmse"] != pytest.approx(summary["rows"][3]["latent_rmse"], rel=1e-4)
    assert summary["originals"]["exact_match"] > 0.5 > summary["rows"][0]["exact_match"]  # drawn text; untrained model
    assert (summary["ranks"], summary["mlflow_run_id"], summary["effective_batch"]) == (2, "abc", 48)
    assert summary["optimizer_bytes_per_rank"] == [10, 12] and Path(summary["grid"]).is_file()
    printed = capsys.readouterr().out
    assert "VAE reconstructions" in printed and "student-consistency-1 against undistilled-ddim-1" in printed
    assert "were not measured: --clip-weights" in printed and summary["rows"][0]["fid"] is None
    for row in summary["rows"][1:]:
        groups = [row, *(group for name, group in row["groups"].items() if name.startswith("language"))]
        for name in ("exact_match", "ned", "structure", "psnr_db", "distance"):
            assert all(group[f"{name}_95"][0] <= group[name] + 1e-9 for group in groups), (row["key"], name)
            assert all(group[name] <= group[f"{name}_95"][1] + 1e-9 for group in groups), (row["key"], name)
    assert summary["originals"]["text_distance"] > 0 == summary["rows"][0]["text_distance"]
    assert picture(tmp_path / "sheet.png").shape[1] > 6 * 320
    (recorded,) = (workplace / "run" / "evaluations").iterdir()
    assert {"summary.json", "grid.png", "sheet.png", "metrics.jsonl"} <= {path.name for path in recorded.iterdir()}


@pytest.mark.heavy
def test_held_out_pictures_are_drawn_for_a_synthetic_run(workplace, tmp_path):
    argv = ["--run", str(workplace / "run"), "--out", str(tmp_path), "--count", "2", "--no-ocr"]
    steps = ["--teacher-steps", "1", "--undistilled-steps", "", "--student-steps", "1"]
    assert evaluate.main([*argv, *steps, "data.synthetic.size=96", "--merge"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["pictures"] == 2 and summary["data"] == [str(tmp_path / "held_out" / "data.json")]
    assert summary["sampling"]["merged"] and summary["rows"][-1]["role"] == "student"
    assert summary["originals"]["exact_match"] is None and summary["rows"][0]["exact_match"] is None
    assert summary["rows"][0]["guidance"] == 5.0 - 1.0  # w in [2, 4] is a scale of 3 to 5


@pytest.mark.heavy
def test_another_engine_can_read(workplace, tmp_path, reuse, monkeypatch, capsys):
    argv = ["--run", str(workplace / "run"), "--data", str(workplace / "data" / "data.json"), "--out", str(tmp_path)]
    argv += ["--teacher-steps", "1", "--undistilled-steps", "", "--student-steps", "1", "--ocr", "own", "--count", "1"]
    monkeypatch.setattr(evaluate, "record_evaluation", lambda *_: None)
    assert evaluate.main(argv) == 0
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert "text_predictor" in summary["ocr_engine"] and "PP-OCRv4" in summary["text_distance_engine"]
    capsys.readouterr()
    monkeypatch.setattr(ocr_engines, "trained_against_recognizer", lambda recipe: True)
    assert evaluate.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --ocr own: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--sample-index", "4"], "sample index 4: the dataset has 4 samples, 0 to 3"),
        (["--sample-index", "-1"], "sample index -1"),
        (["--count", "0"], "--count 0"),
        (["--data", "missing.json"], "missing.json: annotation file does not exist"),
    ],
)
def test_mistakes_after_loading(workplace, tmp_path, capsys, reuse, change, message):
    assert call_infer(workplace, tmp_path, *change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--config", "missing.yaml"], "missing.yaml: no such file"),
        (["--precision", "fp32", "model.widht=3"], "widht"),
        (["model.config=huge"], "'huge': no such file"),
    ],
)
def test_mistakes_while_loading(workplace, tmp_path, capsys, change, message):
    assert call_infer(workplace, tmp_path, *change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--count", "0"], "--count 0"),
        (["--teacher-steps", "0"], "evaluation.teacher_steps=[0]"),
        (["--batch", "0"], "evaluation.batch=0"),
        (["--guidance", "0"], "row teacher-ddim-50: guidance=0.0 must be at least 1"),
        (["--data", "nowhere.json"], "--data nowhere.json: no such file"),
    ],
)
def test_mistakes_of_an_evaluation_before_loading(workplace, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.setattr(
        evaluate, "load_sampling_model", lambda *_: pytest.fail("what is wrong with the command comes first")
    )
    assert evaluation_error(workplace, tmp_path, capsys, change).startswith(f"error: {message}")


def test_a_mistake_of_an_evaluation_after_loading(workplace, tmp_path, capsys, reuse):
    error = evaluation_error(workplace, tmp_path, capsys, ["--first", "4"])
    assert error.startswith("error: --first 4: the dataset has 4 samples")


def evaluation_error(workplace, tmp_path, capsys, change):
    argv = ["--run", str(workplace / "run"), "--data", str(workplace / "data" / "data.json"), "--out", str(tmp_path)]
    assert evaluate.main([*argv, "--no-ocr", *change]) == 2
    assert not (tmp_path / "summary.json").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.heavy
def test_a_run_on_files_needs_held_out_data(workplace, capsys):
    argv = ["--run", str(workplace / "run"), "--no-ocr", f"data.sources=[{workplace}/data/data.json]"]
    assert evaluate.main(argv) == 2
    assert "--data: name an annotation file that was not trained on" in capsys.readouterr().err


def test_a_missing_picture_is_counted_and_all_missing_is_an_error(workplace, tmp_path, capsys, reuse):
    content = json.loads((workplace / "data" / "data.json").read_text(encoding="utf-8"))
    content["data_root"] = str(workplace / "data" / content["data_root"])
    content["data_list"][0]["img_name"] = "gone.png"
    annotations = tmp_path / "data.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    argv = ["--checkpoint", str(workplace / "run"), "--data", str(annotations), "--out", str(tmp_path), "--steps", "1"]
    assert infer.main([*argv, "--count", "2"]) == 0
    assert "1 of the chosen samples cannot be read" in capsys.readouterr().out
    assert infer.main(argv) == 2
    assert "no chosen sample can be read" in capsys.readouterr().err


def test_a_truncated_adapter_is_an_error(workplace, tmp_path, capsys):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (workplace / "run" / "checkpoint-3").glob("adapter_*"):
        (folder / file.name).write_bytes(file.read_bytes()[: 300 if file.suffix == ".safetensors" else None])
    assert (
        call_infer(workplace, tmp_path, "--checkpoint", str(folder), "--config", str(workplace / "run/recipe.yaml"))
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "adapter" in error
