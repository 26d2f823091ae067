"""launch/merge_adapters.py and launch/infer.py --add: a style in kohya's format beside a student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anytext2.model.anytext2 import build_model
from anytext2.model.config import load_model_config
from distill.adapter_files.delta import lora_delta
from distill.adapter_files.names import adaptable_layers, diffusers_path, kohya_name
from distill.adapter_files.reader import read_lora
from distill.adapters.added import named_scale
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.model import make_model
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.variants.added import with_scales
from launch import infer, merge_adapters
from tests.helpers.models.mini_model import write_mini
from tests.helpers.models.parity import normal
from tests.helpers.stored_run import write_run

PROMPT = ["--prompt", 'a red wall "GO"', "--box", "4,16,60,48", "--steps", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/: a student, a LoRA of random weights; style.safetensors: two UNet layers; one more with text."""
    folder = tmp_path_factory.mktemp("combining")
    changes = ["data.options.resolution=64", f"run_root={folder}", "name=run"]
    recipe = load_recipe(DEFAULT_RECIPE, [*write_mini(folder), *changes])
    torch.manual_seed(0)
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    model = build_model(load_model_config(folder / "mini.yaml"), "meta")
    style: dict[str, torch.Tensor] = {}
    for path in STYLED:
        weight = adaptable_layers(model)[path].get_parameter("weight")
        theirs = diffusers_path(path, model.cfg.unet)
        assert theirs is not None
        name, ones = kohya_name(theirs), [1] * (weight.dim() - 2)
        style[f"{name}.lora_down.weight"] = 0.1 * normal(3, *weight.shape[1:], dtype=torch.float32)
        style[f"{name}.lora_up.weight"] = normal(weight.shape[0], 3, *ones, seed=1, dtype=torch.float32)
        style[f"{name}.alpha"] = torch.tensor(1.5)
    save_file(style, folder / "style.safetensors")
    style["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(3, 4)
    save_file(style, folder / "with_text.safetensors")
    return folder


STYLED = (
    "model.diffusion_model.output_blocks.0.1.transformer_blocks.0.attn1.to_q",
    "model.diffusion_model.output_blocks.1.0.in_layers.2",
)


@pytest.mark.heavy
def test_the_combined_adapter_is_the_sum_and_draws_as_the_student(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    style = place / "with_text.safetensors"
    assert merge_adapters.main([str(place / "run"), f"{style}:0.7", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "kohya, 2 layers, scale 0.7; 1 layers of the text encoder left out" in printed and "by cat" in printed
    model = build_model(load_model_config(place / "mini.yaml"), "meta")
    both, own, more = (read_lora(path, model) for path in (out, place / "run" / "checkpoint-3", style))
    for path, layer in adaptable_layers(model).items():
        shape = layer.get_parameter("weight").shape
        parts = [(own, 1.0), (more, 0.7)]
        wanted = [scale * lora_delta(part, path, shape) for part, scale in parts if path in part.ranks]
        assert (path in both.ranks) == bool(wanted)
        if wanted:
            assert torch.allclose(lora_delta(both, path, shape), torch.stack(wanted).sum(0), atol=1e-6), path
    said = json.loads((out / "combined.json").read_text())
    assert said["method"] == "cat" and [part["scale"] for part in said["adapters"]] == [1.0, 0.7]
    added = AnyText2Pipeline.from_run(place / "run", add=[(style, 0.7)])
    pictures = [
        pipe('a red wall "GO"', boxes=[(4, 16, 60, 48)], steps=1).images[0]
        for pipe in (AnyText2Pipeline.from_run(out), added, AnyText2Pipeline.from_run(place / "run"))
    ]
    combined, beside, alone = (np.array(picture).astype(int) for picture in pictures)
    assert np.abs(combined - beside).max() <= 1 and np.abs(combined - alone).max() > 5
    added.set_scales(0.0)
    silent = np.array(added('a red wall "GO"', boxes=[(4, 16, 60, 48)], steps=1).images[0]).astype(int)
    assert np.abs(silent - alone).max() <= 1


@pytest.mark.heavy
def test_a_picture_of_several_scales(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--checkpoint",
        str(place / "run"),
        *PROMPT,
        "--add",
        str(place / "style.safetensors"),
        "--out",
        str(tmp_path),
    ]
    assert infer.main([*argv, "--add-scales", "0,0.5,1", "--count", "2"]) == 0
    assert "kohya, rank 3, 2 layers" in capsys.readouterr().out
    grid = np.array(Image.open(tmp_path / "scales.png"))
    assert grid.shape[0] > 2 * 192 and grid.shape[1] > 3 * 192
    for more, said in (
        (["--add-scales", "nan"], "finite numbers are needed"),
        (["--add-scales", "1", "--merge"], "without --merge"),
        (["--add-scales", "1", "--add", "x"], "needs one --add"),
    ):
        assert infer.main([*argv, *more]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.heavy
def test_an_added_adapter_can_be_merged_and_needs_a_student(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style = place / "style.safetensors"
    merged = AnyText2Pipeline.from_run(place / "run", merge=True, add=[(style, 0.7)])
    beside = AnyText2Pipeline.from_run(place / "run", add=[(style, 0.7)])
    drawn = [pipe('a "GO"', boxes=[(4, 16, 60, 48)], steps=1).images[0] for pipe in (merged, beside)]
    a, b = (np.array(picture).astype(int) for picture in drawn)
    assert np.abs(a - b).max() <= 1
    with pytest.raises(ValueError, match="no added adapters, or they are merged"):
        with_scales(merged.model, [1.0])
    with pytest.raises(ValueError, match="2 scales for 1 added adapters"):
        beside.set_scales(1.0, 2.0)
    mini = [f"model.config={place / 'mini.yaml'}", f"model.weights={place / 'mini.safetensors'}"]
    assert infer.main([*PROMPT, "--add", str(style), *mini]) == 2
    assert "needs a student's adapter beside it; name one with --checkpoint" in capsys.readouterr().err


def test_wrong_commands_leave_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, style = str(place / "run"), str(place / "style.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    new = ["--out", str(tmp_path / "new")]
    for argv, said in (
        ([run, f"{style}:nan", *new], "the scale must be a finite number"),
        ([run, f"{style}:much", *new], "'much' is no scale"),
        ([run, *new], "one adapter is nothing to combine"),
        ([run, str(place / "none.safetensors"), *new], "none.safetensors: no such file or folder"),
        ([run, style, "--method", "sum", *new], "method sum: one of cat, svd"),
        ([run, style, "--density", "2", *new], "density 2.0"),
        ([run, style, "--out", str(tmp_path / "full")], "exists and is not empty"),
        ([run, str(place / "run" / "recipe.yaml"), *new], "recipe.yaml: not a readable weights file"),
    ):
        assert merge_adapters.main(argv) == 2, said
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_scales_are_written_behind_a_colon(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.5"
    odd.touch()
    assert named_scale("x/y.safetensors") == (Path("x/y.safetensors"), 1.0)
    assert named_scale("x:-0.5") == (Path("x"), -0.5)
    assert named_scale(str(odd)) == (odd, 1.0)
