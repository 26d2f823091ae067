"""launch/quantize.py and launch/infer.py --quantized on an adapter of random weights of the mini model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.model import make_model
from launch import infer, quantize
from tests.helpers.models.mini_model import write_mini
from tests.helpers.stored_run import write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/ and other/: students of the mini model; data/."""
    folder = tmp_path_factory.mktemp("quantizing")
    write_dataset(folder / "data", 2, SyntheticConfig(size=96), seed=5)
    model = write_mini(folder)
    for seed, name in enumerate(("run", "other")):
        changes = [*model, "data.options.resolution=64", f"run_root={folder}", f"name={name}"]
        recipe = load_recipe(DEFAULT_RECIPE, [*changes, f"data.sources=[{folder / 'data' / 'data.json'}]"])
        torch.manual_seed(seed)
        write_run(folder / name, recipe, make_model(recipe.model, recipe.seed))
    return folder


@pytest.mark.heavy
def test_a_quantised_student_draws_nearly_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "int8.safetensors"
    assert (
        quantize.main([str(place / "run"), "--out", str(file), "--samples", "1", "--steps", "1", "--keep", "0.05"]) == 0
    )
    printed = capsys.readouterr().out
    assert "alone in 8 bits" in printed and "of 16 bits" in printed
    report = json.loads(file.with_suffix(".json").read_text())
    assert report["bytes"] < 0.65 * report["bytes_16_bit"] and report["eps"] < 0.2 and report["kept"]
    pictures = [one["picture"] for one in report["layers"]]
    assert pictures == sorted(pictures, reverse=True) and len(pictures) > 50
    drawn = []
    for name, more in (("a", []), ("b", ["--quantized", str(file)]), ("c", ["--quantized", str(file), "--teacher"])):
        argv = [
            "--checkpoint",
            str(place / "run"),
            "--steps",
            "1",
            "--teacher-steps",
            "1",
            "--out",
            str(tmp_path / name),
        ]
        assert infer.main([*argv, *more]) == 0
        drawn.append(np.array(Image.open(next((tmp_path / name).glob("sample*student*.png")))).astype(int))
    assert 0 < np.abs(drawn[0] - drawn[1]).mean() < 12
    assert np.array_equal(drawn[1], drawn[2])
    capsys.readouterr()
    for argv, said in (
        (["--checkpoint", str(place / "other"), "--quantized", str(file)], "was made of another student"),
        (["--checkpoint", str(place / "run"), "--quantized", str(file), "--merge"], "leave out --merge"),
        (["--checkpoint", str(place / "run"), "--quantize-activations"], "name their file with --quantized"),
        (["--quantized", str(file)], "belongs to a student"),
    ):
        assert infer.main([*argv, "--out", str(tmp_path / "d")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line


def test_a_wrong_command_writes_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(place / "run")
    for argv, said in (
        ([run, "--out", str(tmp_path / "x.ckpt")], "name a .safetensors file"),
        ([run, "--out", str(tmp_path / "x.safetensors"), "--keep", "nan"], "--keep nan: a share"),
        ([run, "--out", str(tmp_path / "x.safetensors"), "--samples", "0"], "--samples 0"),
        ([str(tmp_path / "no"), "--out", str(tmp_path / "x.safetensors")], "no: "),
    ):
        assert quantize.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
    assert not list(tmp_path.iterdir())
