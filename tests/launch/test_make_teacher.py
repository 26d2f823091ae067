"""launch/make_teacher.py: the command, its refusals, and a first update of what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytext2.model.weights import read_state_dict
from distill.checkpoint.formats import MODEL_WEIGHTS
from launch import make_teacher
from tests.helpers.models.stable_diffusion import recognizer_like, stable_diffusion_like
from tests.helpers.processes.ranks import all_output, returned, run_ranks
from tests.helpers.processes.training_runs import SMALL_BATCH, TrainingFolder, train_command


def sources(folder: Path, weights: Path) -> list[str]:
    """Writes a Stable Diffusion and a recogniser cut out of a model's file; returns the command's first words."""
    state = read_state_dict(weights)
    half = {name: tensor.half() for name, tensor in stable_diffusion_like(state).items()}
    torch.save({"state_dict": half, "epoch": 1}, folder / "sd.ckpt")
    save_file(recognizer_like(state), folder / "ocr.safetensors")
    return [str(folder / "sd.ckpt"), "--ocr", str(folder / "ocr.safetensors"), "--config", str(folder / "mini.yaml")]


@pytest.mark.process
def test_the_new_teacher_trains_with_the_official_freezing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = TrainingFolder.create(tmp_path, 8)
    out = tmp_path / "models" / "scratch.ckpt"
    assert make_teacher.main([*sources(tmp_path, tmp_path / "mini.safetensors"), "--out", str(out)]) == 0
    assert "tensors copied" in capsys.readouterr().out
    change = [*SMALL_BATCH, f"model.weights={out}", "objective={name: denoise}", "train.max_steps=1", "data.part=all"]
    results = run_ranks(1, train_command, runs.argv("teacher", *change, "checkpoint.save_steps=1"))
    returned(results)
    assert "its conditions and gradients are sound" in results[0].stdout, all_output(results)
    before = read_state_dict(out)
    after = load_file(runs.run_dir("teacher") / "checkpoint-1" / MODEL_WEIGHTS)
    trained = {name.split(".")[0] for name in after}
    assert trained == {"control_model", "embedding_manager", "model"}
    assert all("attn1x" in name or "attn2x" in name for name in after if name.startswith("model."))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"control_model.zero_convs.0.0.weight", "control_model.middle_block_out.0.weight"} <= moved


def test_a_wrong_command_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"conditioner.embedders.0.x": torch.ones(1)}, tmp_path / "xl.safetensors")
    save_file({"backbone.x": torch.ones(1)}, tmp_path / "ocr.safetensors")
    before = sorted(tmp_path.iterdir())
    ocr = ["--ocr", str(tmp_path / "ocr.safetensors")]
    for argv, said in (
        ([str(tmp_path / "xl.safetensors"), *ocr, "--out", str(tmp_path / "new.ckpt")], "Stable Diffusion XL"),
        ([str(tmp_path / "no.ckpt"), *ocr, "--out", str(tmp_path / "new.ckpt")], "no such weights file"),
        ([str(tmp_path / "xl.safetensors"), *ocr, "--out", str(tmp_path / "new.bin")], "name a .ckpt or .safetensors"),
        ([str(tmp_path / "xl.safetensors"), *ocr, "--out", str(tmp_path)], "is a folder; name a file"),
    ):
        assert make_teacher.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
    assert sorted(tmp_path.iterdir()) == before
