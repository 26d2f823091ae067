"""What a checkpoint holds: adapter, optimizer and trainer state return as they were written; PEFT reads the adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import anytext2  # noqa: F401  declares the torchvision operators that peft's imports need
from distill.checkpoint.formats import (
    CONFIG_KEYS,
    TrainerState,
    portable_name,
    read_adapter,
    read_optimizer,
    read_trainer_state,
    write_adapter,
    write_optimizer,
    write_tensors,
    write_trainer_state,
)
from distill.checkpoint.store import CheckpointError
from tests.helpers.models.small_adapter import adamw_state, adapter_tensors, small_student


def test_peft_loads_the_adapter_on_the_reference_model(tmp_path: Path) -> None:
    from peft import PeftModel

    reference, wrapped = small_student()
    write_adapter(tmp_path, adapter_tensors(wrapped), wrapped.peft_config["student"], base_model="tiny")  # type: ignore[index]
    loaded = PeftModel.from_pretrained(reference, str(tmp_path))  # type: ignore[arg-type]
    x = torch.randn(7, 6)
    assert torch.equal(loaded(x), wrapped(x))
    with loaded.disable_adapter():
        assert not torch.allclose(loaded(x), wrapped(x))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 3 and config["inference_mode"] is True
    assert config["target_modules"] == ["body.to_q", "body.zero_conv"] and config["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("switch", [None, "use_dora", "use_rslora"])
def test_the_adapter_s_configuration_is_what_every_release_of_peft_knows(tmp_path: Path, switch: str | None) -> None:
    _, wrapped = small_student()
    given = wrapped.peft_config["student"]  # type: ignore[index]
    given.target_modules = {"to_q", "zero_conv"}  # as PEFT shortens a long list
    if switch:
        setattr(given, switch, True)
    write_adapter(tmp_path, adapter_tensors(wrapped), given)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config) == {*CONFIG_KEYS, *([switch] if switch else [])} and config.get(switch or "", True) is True
    assert config["target_modules"] == ["body.to_q", "body.zero_conv"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_readable_by_whom_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    _, wrapped = small_student()
    before = os.umask(umask)
    try:
        write_adapter(tmp_path, adapter_tensors(wrapped), wrapped.peft_config["student"])  # type: ignore[index]
        write_optimizer(tmp_path, {"a": {"master": torch.zeros(2)}})
        write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
        write_trainer_state(tmp_path, TrainerState(1, 1, 1, 1))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) == 5 and {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_adapter_returns_as_it_was_written(tmp_path: Path) -> None:
    _, wrapped = small_student()
    tensors = adapter_tensors(wrapped)
    assert set(tensors) == {f"body.{m}.lora_{ab}.weight" for m in ("to_q", "zero_conv") for ab in "AB"}
    write_adapter(tmp_path, tensors, wrapped.peft_config["student"])  # type: ignore[index]
    read, config = read_adapter(tmp_path)
    assert config["lora_alpha"] == 6 and set(read) == set(tensors)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_an_adapter_with_nan_is_not_written(tmp_path: Path) -> None:
    _, wrapped = small_student()
    tensors = adapter_tensors(wrapped)
    tensors["body.to_q.lora_A.weight"] = torch.full((3, 6), float("nan"))
    with pytest.raises(ValueError, match="body.to_q.lora_A.weight is not finite"):
        write_adapter(tmp_path, tensors, wrapped.peft_config["student"])  # type: ignore[index]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model.", "module.base_model.model."])
def test_portable_name(prefix: str) -> None:
    wrapped = f"{prefix}model.student.to_k.lora_B.student.weight"
    assert portable_name(wrapped, "student") == "model.student.to_k.lora_B.weight"
    assert portable_name(f"{prefix}model.conv.weight", "student") == "model.conv.weight"
    lengths = f"{prefix}model.student.to_k.lora_magnitude_vector.student.weight"
    assert portable_name(lengths, "student") == "model.student.to_k.lora_magnitude_vector"


def test_optimizer_state_round_trip(tmp_path: Path) -> None:
    model, state = adamw_state()
    buffer = torch.arange(40.0)
    state["body.to_q.bias"]["exp_avg"] = buffer[10:15]  # a window into a flat buffer, as ZeRO keeps its shards
    state["body.zero_conv.bias"]["exp_avg"] = buffer[20:24]
    write_optimizer(tmp_path, state)
    read = read_optimizer(tmp_path, {n: p.shape for n, p in model.named_parameters()})
    assert set(read) == set(state)
    for name, slots in state.items():
        assert set(read[name]) == {"exp_avg", "exp_avg_sq", "step", "master"} == set(slots)
        assert all(torch.equal(read[name][slot], tensor) for slot, tensor in slots.items())
    assert read["body.to_q.bias"]["step"].item() == 3.0
    assert (tmp_path / "optimizer.safetensors").stat().st_size < 5000  # the windows, not their buffer


def test_optimizer_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model, state = adamw_state()
    write_optimizer(tmp_path, state)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    with pytest.raises(CheckpointError, match="1 parameters missing, 0 unexpected, first other"):
        read_optimizer(tmp_path, shapes | {"other": torch.Size([1])})
    with pytest.raises(CheckpointError, match=r"of body.to_q.weight has shape \(5, 6\), the model \(9, 6\)"):
        read_optimizer(tmp_path, shapes | {"body.to_q.weight": torch.Size([9, 6])})


def test_truncated_tensors_are_one_clear_line(tmp_path: Path) -> None:
    _, state = adamw_state()
    write_optimizer(tmp_path, state)
    file = tmp_path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="optimizer.safetensors: not a whole safetensors file"):
        read_optimizer(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        read_optimizer(tmp_path)


def test_trainer_state_round_trip_and_faults(tmp_path: Path) -> None:
    state = TrainerState(7, 9, 1234, 48, 2, {"cur_scale": 65536.0, "cur_iter": 9}, "abc", {"best": 0.5})
    write_trainer_state(tmp_path, state)
    assert read_trainer_state(tmp_path) == state
    path = tmp_path / "trainer_state.json"
    content = json.loads(path.read_text())
    for change, reason in (
        ({"step": "7"}, "step='7' is not of type int"),
        ({"colour": 1}, "unknown field colour"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(CheckpointError, match=reason):
            read_trainer_state(tmp_path)
    del content["batches"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="field batches is missing"):
        read_trainer_state(tmp_path)
    with pytest.raises(ValueError):
        write_trainer_state(tmp_path, TrainerState(1, 1, 1, 1, extra={"loss": float("nan")}))
