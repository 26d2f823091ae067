"""launch/inspect_modules.py: the list that it writes is one that lora.targets takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anytext2.model.anytext2 import build_model, load_model_config
from anytext2.model.weights import TINY_WEIGHTS, read_state_dict
from distill.adapters.targets import lora_targets
from launch import inspect_modules
from tests.helpers.old_settings import old_target_modules

Captured = pytest.CaptureFixture[str]


def inspect(out: Path, *words: str) -> int:
    return inspect_modules.main(["--model", "tiny", "--out", str(out), *words])


def layers_of(file: Path) -> list[str]:
    return lora_targets(build_model(load_model_config("tiny"), "meta"), str(file))


def test_the_list_of_a_preset_is_the_preset(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "new" / "target_modules_list.txt"
    assert inspect(out, "--targets", "decoder", "--rank", "32") == 0
    said = capsys.readouterr().out
    assert "| UNet | self-attention (attn1) | Linear | 16 | 16 of 160x160 | 410,240 |" in said
    assert "| lora.targets | layers | trained parameters, rank 32 | share of 18,788,569 |" in said
    assert layers_of(out) == lora_targets(build_model(load_model_config("tiny"), "meta"), "decoder")


def test_of_an_earlier_list_the_names_that_exist_are_kept(tmp_path: Path, capsys: Captured) -> None:
    old, out = tmp_path / "target_modules_list.txt", tmp_path / "new.txt"
    old.write_text(old_target_modules())
    assert inspect(out, "--names", str(old)) == 0
    said = capsys.readouterr().out
    assert f"{old}: 517 names" in said and "have no place in the model\n    control_model." in said
    assert f"  {len(layers_of(out))} are layers of the model" in said
    assert inspect(old, "--names", str(old)) == 2
    assert old.read_text() == old_target_modules()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_the_layers_of_an_adapter(name: str, tmp_path: Path, capsys: Captured) -> None:
    paths = ["control_model.zero_convs.0.0", "control_model.zero_convs.99.0"]
    tensors = {f"base_model.model.{path}.lora_{part}.weight": torch.zeros(2) for path in paths for part in "AB"}
    (torch.save if name.endswith("bin") else save_file)(tensors, tmp_path / name)
    out = tmp_path / "targets.txt"
    assert inspect(out, "--adapter", str(tmp_path)) == 0
    assert "  1 have no place in the model\n    control_model.zero_convs.99.0" in capsys.readouterr().out
    assert layers_of(out) == paths[:1]


def test_the_keys_of_a_checkpoint(tmp_path: Path, capsys: Captured) -> None:
    state = {name: tensor.clone() for name, tensor in read_state_dict(TINY_WEIGHTS).items()}
    del state["betas"]
    state["model.diffusion_model.out.2.bias"] = torch.zeros(3)
    state["more"] = torch.zeros(1)
    save_file(state, tmp_path / "other.safetensors")
    assert inspect(tmp_path / "list.txt", "--weights", str(tmp_path / "other.safetensors")) == 0
    said = capsys.readouterr().out
    assert (
        "  1 missing\n    betas\n  1 unexpected\n    more\n  1 of another shape\n    model.diffusion_model.out.2.b"
        in said
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--targets nope", "lora.targets='nope' is no preset"),
        ("--rank 0", "--rank 0: must be at least 1"),
        ("--model nope", "nope"),
        ("--names none.txt", "none.txt: No such file"),
        ("--names EMPTY", "names no layer of the model"),
        ("--adapter .", "no adapter_model.safetensors or adapter_model.bin there"),
        ("--weights none.safetensors", "none.safetensors: no such weights file"),
        ("--names EMPTY --adapter .", "give one of them"),
    ],
)
def test_wrong_words_are_said_in_one_line(words: str, error: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "empty.txt").write_text("")
    out = tmp_path / "list.txt"
    assert inspect(out, *words.replace("EMPTY", str(tmp_path / "empty.txt")).split()) == 2
    said = capsys.readouterr().err
    assert error in said and said.count("\n") == 1 and not out.exists()
