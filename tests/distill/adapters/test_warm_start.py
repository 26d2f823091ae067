"""A student's first weights from adapter folders of several origins, and from somebody with bad intentions."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.adapters.lora import AdapterConfig
from distill.adapters.warm_start import load_warm_start, read_start, read_warm_file, read_warm_start
from distill.checkpoint.formats import PEFT_PREFIX
from distill.export.exported import ExportOptions
from distill.export.formats import export
from distill.export.student import read_student
from tests.helpers.models.small_sd import ALPHA, RANK, write_small_run

LORA = AdapterConfig(rank=2, alpha=4)
SHAPES = {"a.to_q.lora_A.weight": (2, 6), "a.to_q.lora_B.weight": (5, 2)}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {PEFT_PREFIX + n: torch.arange(s[0] * s[1]).reshape(s).to(dtype) for n, s in SHAPES.items()}


def parameters() -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(torch.zeros(shape))) for name, shape in SHAPES.items()]


def old_run(folder: Path, state: Any = None) -> Path:
    """A folder as the original project's runs left it."""
    torch.save(tensors(torch.float16), folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    if state is not None:
        torch.save(state, folder / "training_state.pt")
    return folder


@pytest.mark.parametrize("key", ["step", "global_step"])
def test_a_run_of_the_original_layout_is_a_start(tmp_path: Path, key: str) -> None:
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters()).state_dict()
    start = read_warm_start(old_run(tmp_path, {key: 1200, "optimizer": optimizer}), LORA)
    assert start.step == 1200
    params = parameters()
    load_warm_start(start, params)
    for name, parameter in params:
        assert parameter.dtype == torch.float32 and torch.equal(parameter, tensors()[PEFT_PREFIX + name])


def test_safetensors_come_first_and_names_may_carry_peft_s_adapter(tmp_path: Path) -> None:
    old_run(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    renamed = {n.replace(".weight", ".default.weight"): t + 1 for n, t in tensors().items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    start = read_warm_start(tmp_path, LORA)
    assert start.step is None and start.path.name == "adapter_model.safetensors"
    assert torch.equal(start.tensors["a.to_q.lora_B.weight"], tensors()[PEFT_PREFIX + "a.to_q.lora_B.weight"] + 1)


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    start = read_warm_start(old_run(tmp_path), LORA)
    params = [*parameters(), ("b.to_k.lora_A.weight", nn.Parameter(torch.zeros(2, 6)))]
    with pytest.raises(ValueError, match="of 3 tensors 1 missing .first b.to_k.lora_A.weight."):
        load_warm_start(start, params)
    params = [(name, nn.Parameter(torch.zeros(7, 7))) for name, _ in parameters()[:1]]
    with pytest.raises(ValueError, match="1 unexpected .first a.to_q.lora_B.weight., 1 of another shape"):
        load_warm_start(start, params)
    assert not any(p.any() for _, p in params)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("lora", {"r": 8}, "r=8, the recipe has lora.rank=2"),
        ("lora", {"lora_alpha": 16}, "lora_alpha=16, the recipe has lora.alpha=4"),
        ("lora", {"use_dora": True}, "use_dora=True, the recipe has lora.kind=lora; set lora.kind=dora"),
        ("dora", {"use_rslora": True}, "use_rslora=True, the recipe has lora.kind=dora; set lora.kind=rslora"),
        ("rslora", {}, "neither use_dora nor use_rslora, the recipe has lora.kind=rslora; set lora.kind=lora"),
        ("dora", {"use_dora": True, "use_rslora": True}, "use_dora=True and use_rslora=True.*that is no lora.kind"),
        ("lora", {"fan_in_fan_out": True}, "fan_in_fan_out=True.*that is no lora.kind"),
    ],
)
def test_another_kind_of_adapter_is_refused(tmp_path: Path, kind: str, config: dict[str, Any], words: str) -> None:
    (old_run(tmp_path) / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as caught:
        read_warm_start(tmp_path, replace(LORA, kind=kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".default", ".default.weight", ".weight"])
def test_a_dora_starts_with_its_lengths(tmp_path: Path, suffix: str) -> None:
    lengths = torch.arange(5.0) + 1
    save_file(
        tensors() | {f"{PEFT_PREFIX}a.to_q.lora_magnitude_vector{suffix}": lengths},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "use_dora": True}))
    start = read_warm_start(tmp_path, replace(LORA, kind="dora"))
    params = [*parameters(), ("a.to_q.lora_magnitude_vector", nn.Parameter(torch.zeros(5)))]
    load_warm_start(start, params)
    assert torch.equal(params[-1][1], lengths)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter_model.safetensors or adapter_model.bin"):
        read_warm_start(tmp_path, LORA)
    path = old_run(tmp_path) / "adapter_model.bin"
    whole = path.read_bytes()
    contents: tuple[Any, ...] = (whole[:-40], whole[:3], b"", [1, 2], {"x": 1}, {"a": torch.tensor(float("nan"))})
    for content in contents:
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError) as caught:
            read_warm_start(tmp_path, LORA)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("format_", ["kohya", "diffusers", "safetensors"])
def test_a_file_of_any_format_is_a_start(tmp_path: Path, format_: str) -> None:
    student = read_student(write_small_run(tmp_path), None, [])
    file = export(student, format_, tmp_path / "lora.safetensors", ExportOptions()).path
    lora = AdapterConfig(rank=RANK, alpha=RANK if format_ == "diffusers" else ALPHA)
    start = read_warm_file(file, lora, student.model)
    params = [(name, nn.Parameter(torch.zeros(t.shape))) for name, t in student.weights.tensors.items()]
    load_warm_start(start, params)
    scale = ALPHA / RANK if format_ == "diffusers" else 1.0  # diffusers' names tell no alpha, so B is scaled
    for name, parameter in params:
        known = format_ == "safetensors" or name in start.tensors
        wanted = student.weights.tensors[name] * (scale if ".lora_B" in name else 1.0)
        assert torch.equal(parameter.detach(), wanted if known else torch.zeros_like(wanted))
    assert start.is_part == (format_ != "safetensors")
    told = start.described(len(params))
    assert told == f"{file}: {len(start.tensors)}{f' of {len(params)}' if start.is_part else ''} tensors"
    with pytest.raises(ValueError, match=f"lora.weights: .*: rank {RANK} of .*set lora.rank to it"):
        read_warm_file(file, replace(lora, rank=8), student.model)
    with pytest.raises(ValueError, match="lora.weights: .*: scale .*with lora.kind=lora that is lora.alpha="):
        read_warm_file(file, replace(lora, alpha=8), student.model)


def test_merged_weights_are_no_start(tmp_path: Path) -> None:
    student = read_student(write_small_run(tmp_path), None, [])
    file = export(student, "merged", tmp_path / "merged.safetensors", ExportOptions()).path
    with pytest.raises(ValueError, match="lora.weights: .*holds no LoRA; model.weights takes merged weights"):
        read_start(AdapterConfig(weights=str(file)), student.recipe.model.config)


class Evil:
    """A pickle of this makes a folder when it is read without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_state.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, name: str, zipped: bool) -> None:
    old_run(tmp_path, {"step": 1})
    content = {**tensors(), "step": 3, "extra": Evil(tmp_path / "owned")}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as caught:
        read_warm_start(tmp_path, LORA)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: refused: it asks for posix.mkdir, and only tensors")
    assert "\n" not in message and not (tmp_path / "owned").exists()
    torch.load(tmp_path / name, weights_only=False)  # the file is what it claims to be
    assert (tmp_path / "owned").is_dir()
