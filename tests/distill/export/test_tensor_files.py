"""Files that are written tensor by tensor are what the usual readers read, whole or not there."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from anytext2.model.weights import read_state_dict
from distill.adapter_files.metadata import METADATA
from distill.export import tensor_files
from distill.export.tensor_files import TensorSpec, write_tensor_file
from tests.helpers.models.parity import normal


def tensors() -> dict[str, Tensor]:
    return {
        "a.weight": normal(3, 5, seed=1).half(),
        "table": normal(7, seed=2).float(),
        "a.count": torch.tensor(12345678901),
        "b.weight": normal(2, 3, 1, 1, seed=3).bfloat16(),
        "empty": torch.zeros(0, 4),
        "c.exact": normal(3, 3, seed=4),
    }


def specs() -> list[TensorSpec]:
    return [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors().items()]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt"])
def test_the_usual_readers_read_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    write_tensor_file(path, specs(), tensors().__getitem__, {METADATA: '{"é": 1}', "other": "x"})
    found = read_state_dict(path)
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in tensors().items())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", METADATA: '{"é": 1}', "other": "x"}


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_it_with_and_without_mapping(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "weights.ckpt"
    write_tensor_file(path, specs(), tensors().__getitem__, {METADATA: "text"})
    content = torch.load(path, weights_only=True, mmap=mmap)
    assert content[METADATA] == "text" and list(content["state_dict"]) == list(tensors())
    assert all(torch.equal(content["state_dict"][name], t) for name, t in tensors().items())
    assert all(t.data_ptr() % 64 == 0 for t in content["state_dict"].values() if mmap and t.numel())
    assert zipfile.ZipFile(path).testzip() is None


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Tensor:
        if name == "table":
            raise OSError(28, "No space left on device")
        return tensors()[name]

    for suffix in (".safetensors", ".ckpt"):
        with pytest.raises(OSError, match="No space left"):
            write_tensor_file(tmp_path / f"weights{suffix}", specs(), fails)
    with pytest.raises(ValueError, match="suffix .bin: one of .safetensors, .ckpt"):
        write_tensor_file(tmp_path / "weights.bin", specs(), tensors().__getitem__)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=tensor_files._ROOM))
    with pytest.raises(OSError, match="no room: 0 MB are needed, 67 MB are free"):
        write_tensor_file(tmp_path / "weights.pt", specs(), tensors().__getitem__)
    assert not list(tmp_path.iterdir())
