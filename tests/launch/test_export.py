"""launch/export.py: what it says, the card, its files in the pipeline, and mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.model import make_model
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.preparation import DrawingLimits
from launch import export
from tests.helpers.paths import ROOT
from tests.helpers.stored_run import write_run

PROMPT = 'a red wall that reads "GO"'
ROW = {"role": "student", "sampler": "phased", "steps": 4, "guidance": 1.0, "nfe": 4, "exact_match": 0.5, "ned": 0.75}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model, measured, with a picture of it."""
    folder = tmp_path_factory.mktemp("export")
    changes = ["data.options.resolution=64", f"run_root={folder}", "name=run", "lora.rank=2", "lora.alpha=2"]
    recipe = load_recipe(DEFAULT_RECIPE, changes)
    torch.manual_seed(0)
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    summary = {"checkpoint": "runs/run/checkpoint-3", "pictures": 8, "ocr_engine": "own", "rows": [ROW]}
    (folder / "run" / "summary.json").write_text(json.dumps(summary))
    Image.new("RGB", (2000, 3000), "red").save(folder / "run" / "grid.png")
    return folder / "run"


def called(*arguments: object) -> int:
    return export.main([str(argument) for argument in arguments])


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.heavy
def test_formats_card_and_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = {}
    limits = DrawingLimits(letter=8, side=64)
    for format_, name in (("kohya", "kohya.safetensors"), ("merged", "all.ckpt"), ("peft", "folder")):
        assert called(run, "--format", format_, "--out", tmp_path / name, "--dtype", "fp32") == 0
        pipe = AnyText2Pipeline.from_run(tmp_path / name, limits=limits)
        result = pipe(PROMPT, seed=1, teacher=format_ != "kohya", teacher_steps=2)
        pictures[format_] = np.array(result.images[0]).astype(int)
        assert (result.rows[-1].spec.sampler, result.rows[-1].spec.steps) == ("phased", 4)
    printed = capsys.readouterr().out
    assert "3 updates; 32 adapted layers" in printed and "left out: WriteNet, 20 of 20 layers" in printed
    assert "sampling: 4 steps of sampler phased at timesteps 999, 759, 499, 259; guidance 1" in printed
    assert "LoRA of UNet 32 layers in kohya names; not in it: attnx of the UNet 24, WriteNet 20" in printed
    own = AnyText2Pipeline.from_run(run, limits=limits)(PROMPT, seed=1)
    for format_ in ("merged", "peft"):
        assert np.abs(pictures[format_] - np.array(own.images[0])).max() <= 1
    card = (tmp_path / "README.md").read_text()
    assert "# run: AnyText2 in 4 steps" in card and "| 4 | 999, 759, 499, 259 |" in card
    assert "| student, phased | 4 | 1 | 4 | 0.500 | 0.750 |" in card
    assert "`kohya.safetensors` | kohya |" in card and "`all.ckpt` | merged |" in card and str(tmp_path) not in card
    with Image.open(tmp_path / "pictures.jpg") as picture:
        assert picture.size == (1600, 1600)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "all.ckpt",
        "folder",
        "kohya.safetensors",
        "pictures.jpg",
    ]


@pytest.mark.heavy
def test_the_document_s_snippet_for_peft_runs_as_it_stands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert called(run, "--format", "peft", "--out", Path("runs") / "export" / "demo" / "demo-peft") == 0
    text = (ROOT / "docs" / "EXPORT.md").read_text(encoding="utf-8")
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "PeftModel" in block]
    made: dict[str, Any] = {}
    exec(snippet, made)
    stored = load_file(tmp_path / "runs/export/demo/demo-peft" / ADAPTER_WEIGHTS)
    attached = {n.replace(".default", ""): p for n, p in made["student"].named_parameters() if ".lora_" in n}
    assert attached.keys() == stored.keys() and all(torch.equal(attached[n].detach(), stored[n]) for n in stored)


def test_someone_else_s_readme_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert called(run, "--format", "safetensors", "--out", tmp_path / "x.safetensors") == 0
    assert (tmp_path / "README.md").read_text() == "mine" and "README.md is somebody else's" in capsys.readouterr().out


def damaged_folder(run: Path, folder: Path, **config: object) -> Path:
    """The adapter without its checkpoint, beside a recipe, with other values in its configuration."""
    folder.mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copy(run / "checkpoint-3" / name, folder / name)
    shutil.copy(run / "recipe.yaml", folder / "recipe.yaml")
    content = json.loads((folder / ADAPTER_CONFIG).read_text()) | config
    content = {key: value for key, value in content.items() if value is not None}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": None}, "r=None: a number is needed"),
        ({"lora_alpha": None}, "lora_alpha=None: a number is needed"),
        ({"lora_alpha": float("nan")}, "alpha=nan of .*: a number above 0"),
        ({"r": 3}, "r=3, but lora_A of .* has rank 2"),
    ],
)
def test_rank_and_alpha(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, object], words: str
) -> None:
    folder = damaged_folder(run, tmp_path / "damaged", **config)
    assert called(folder, "--format", "kohya", "--out", tmp_path / "out" / "x.safetensors") == 2
    assert re.search(words, one_error(capsys)) and not (tmp_path / "out").exists()


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        out = [] if "--out" in arguments else ["--out", tmp_path / "out" / "x.safetensors"]
        assert called(*arguments, *out) == 2
        assert not (tmp_path / "out").exists()
        return one_error(capsys)

    half = damaged_folder(run, tmp_path / "half")
    (half / ADAPTER_WEIGHTS).write_bytes((half / ADAPTER_WEIGHTS).read_bytes()[:-64])
    assert "not a readable weights file, truncated" in refused(half, "--format", "kohya")
    assert "a LoRA of another base: 76 of 76 layers" not in refused(run, "--format", "kohya", "model.config=none")
    assert "another base" in refused(run, "--format", "safetensors", "model.config=sd15")
    assert "no such folder" in refused(tmp_path / "nothing", "--format", "kohya")
    assert "ends in .safetensors or .ckpt" in refused(run, "--format", "merged", "--out", tmp_path / "out" / "x.pt")
    assert "is a folder; name a file" in refused(run, "--format", "merged", "--out", run)
    assert "a PEFT folder is written in fp32" in refused(run, "--format", "peft", "--dtype", "fp16")
    assert "no such weights file; the weights that the LoRA belongs to" in refused(
        run, "--format", "merged", "model.weights=none.ckpt"
    )
    assert "holds checkpoint-3, which is no part of an adapter" in refused(run, "--format", "peft", "--out", run)


def test_values_that_are_not_finite(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = damaged_folder(run, tmp_path / "nan")
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    assert called(folder, "--format", "safetensors", "--out", tmp_path / "x.safetensors") == 2
    assert "is not finite" in one_error(capsys)
