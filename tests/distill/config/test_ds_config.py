"""DeepSpeed's configuration files: which one a machine gets, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.config.ds_config import choose_config, precision_of, read_ds_config
from distill.runtime.world import World
from tests.helpers.paths import ROOT

DS_CONFIGS = ROOT / "ds_configs"


def cpu_world(size: int = 1) -> World:
    return World(rank=0, local_rank=0, size=size, device=torch.device("cpu"))


def test_without_a_gpu_fp16_falls_back_and_says_so() -> None:
    config, line = choose_config(DS_CONFIGS / "zero2.json", cpu_world(3), fp16_on_cpu=False)
    assert precision_of(config) == "fp32" and config == read_ds_config(DS_CONFIGS / "zero2_cpu.json")
    assert line == "No GPU here: zero2.json (fp16) falls back to zero2_cpu.json (fp32), 3 ranks on the CPU"


@pytest.mark.parametrize(
    ("name", "fp16_on_cpu", "precision"),
    [("zero2.json", True, "fp16"), ("zero2_bf16.json", False, "bf16"), ("zero2_cpu.json", False, "fp32")],
)
def test_what_runs_on_a_cpu_is_left_as_it_is(name: str, fp16_on_cpu: bool, precision: str) -> None:
    config, line = choose_config(DS_CONFIGS / name, cpu_world(), fp16_on_cpu)
    assert config == read_ds_config(DS_CONFIGS / name) and precision_of(config) == precision
    assert line == f"DeepSpeed ZeRO-2: {precision}, 1 rank on the CPU"


def test_on_a_gpu_the_configuration_is_the_one_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    world = replace(cpu_world(2), device=torch.device("cuda", 0))
    config, line = choose_config(DS_CONFIGS / "zero2.json", world, fp16_on_cpu=False)
    assert precision_of(config) == "fp16" and line == "DeepSpeed ZeRO-2: fp16, 2 ranks on Some GPU"


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_shipped_configurations_leave_batch_and_optimizer_to_the_recipe(path: Path) -> None:
    owned = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    assert not (owned | {"optimizer", "scheduler"}) & set(read_ds_config(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "not valid JSON: line 1"),
        ("[]", "an object is needed"),
        ('{"zero_optimization": 2}', "an object is needed"),
        ('{"zero_optimization": {"stage": 2}, "fp16": true}', "an object is needed"),
        ("{}", "stage=None"),
        ('{"zero_optimization": {"stage": 3}}', "stage=3"),
    ],
)
def test_a_deepspeed_file_that_cannot_be_used(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_ds_config(path)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message


def test_the_fp16_file_needs_its_cpu_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(read_ds_config(DS_CONFIGS / "zero2.json")))
    with pytest.raises(ValueError, match="zero2_cpu.json: no such file"):
        choose_config(tmp_path / "mine.json", cpu_world(), fp16_on_cpu=False)
