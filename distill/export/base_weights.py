"""The teacher's weights by official name, read one by one from where a recipe says they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from anytext2.model.anytext2 import AnyText2, schedule_tables
from anytext2.model.pseudo_weights import fill_with_pseudo_weights
from anytext2.model.weights import (
    IGNORED_KEY,
    TINY_WEIGHTS,
    official_state_dict,
    official_tensors,
    read_state_dict,
    require_fit,
    tensor_names,
)
from distill.config.schema import ModelConfig
from distill.inference.model import make_model, part_file


class _Source(Protocol):
    """Some of the weights, by official name."""

    def shapes(self) -> Mapping[str, Tensor]:
        """Tensors of these names and shapes, perhaps without values."""

    def read(self, name: str) -> Tensor: ...


class BaseWeights:
    """The weights of a recipe's model section, which are not read before they are asked for.

    model: the network on the meta device. files: what was read from, whose hash tells the weights.
    Raises ValueError for a missing file, or one that does not fit the model.
    """

    def __init__(self, section: ModelConfig, seed: int, model: AnyText2) -> None:
        self._model = model
        self.tensors = official_state_dict(model)
        self.files: list[Path] = []
        self._schedule = schedule_tables(model.cfg.schedule)
        self._sources: list[_Source] = []
        if section.weights == "scratch":
            self._sources.append(_InMemory(official_state_dict(make_model(section, seed))))
            return
        if section.weights == "filled":
            self._sources.append(_Filled(self.tensors))
        elif section.weights == "embedded" and section.config != "tiny":
            raise ValueError(f"model.weights=embedded: only model.config=tiny ships weights, not {section.config}")
        else:
            self._add(TINY_WEIGHTS if section.weights == "embedded" else Path(section.weights), is_part=False)
        for part in section.parts:
            self._add(part_file(Path(part)), is_part=True)

    def _add(self, path: Path, is_part: bool) -> None:
        names = tensor_names(path)  # also says what is wrong with the file
        is_plain = path.suffix == ".safetensors" and not names - self.tensors.keys() - {IGNORED_KEY}
        source = _Safetensors(path) if is_plain else _InMemory(official_tensors(read_state_dict(path)))
        shapes = {name: tensor for name, tensor in source.shapes().items() if name != IGNORED_KEY}
        require_fit(path, shapes, {n: t for n, t in self.tensors.items() if n in shapes or not is_part})
        self._sources.insert(0, source)
        self.files.append(path)

    def read(self, name: str) -> Tensor:
        """The tensor of an official name, in its file's dtype."""
        if name in self._schedule:
            return self._schedule[name]
        return next(source for source in self._sources if name in source.shapes()).read(name)

    def sha256(self) -> str:
        """Of the files, one after the other; empty where there are none."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest() if self.files else ""


class _Safetensors:
    """A file with official names, which stays on the disk."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self._shapes: dict[str, Tensor] = {}
        for name in self._file.keys():  # noqa: SIM118  it is no mapping
            self._shapes[name] = torch.empty(self._file.get_slice(name).get_shape(), device="meta")

    def shapes(self) -> Mapping[str, Tensor]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _InMemory:
    """A torch file, which is mapped into memory and read when it is used, or weights that were just made."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def shapes(self) -> Mapping[str, Tensor]:
        return self._tensors

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


class _Filled:
    """Pseudo weights."""

    def __init__(self, shapes: Mapping[str, Tensor]) -> None:
        self._shapes = shapes

    def shapes(self) -> Mapping[str, Tensor]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        tensor = torch.empty(self._shapes[name].shape, dtype=self._shapes[name].dtype)
        fill_with_pseudo_weights({name: tensor})
        return tensor
