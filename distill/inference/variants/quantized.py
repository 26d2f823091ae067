"""A student with 8-bit weights, from a file of launch/quantize.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from anytext2.model.anytext2 import AnyText2
from distill.adapters.roles import SamplingRoles
from distill.checkpoint.formats import ADAPTER_WEIGHTS
from distill.inference.loading import SamplingModel, move_model
from distill.quantization.dynamic import quantize_activations
from distill.quantization.files import load_quantized, read_note
from distill.quantization.int8 import own_structure


class QuantizedRoles:
    """A student whose layers are its own, beside the teacher of other roles."""

    def __init__(self, model: AnyText2, others: SamplingRoles) -> None:
        self.model = model
        self._others = others

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        return [self.model, *self._others.networks]

    @contextmanager
    def teacher(self) -> Iterator[AnyText2]:
        with self._others.teacher() as teacher:
            yield teacher


def student_hash(model: SamplingModel) -> str:
    """A hash of the file with the student's weights."""
    assert model.checkpoint is not None
    file = model.checkpoint if model.checkpoint.is_file() else model.checkpoint / ADAPTER_WEIGHTS
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(2**24):
            digest.update(block)
    return digest.hexdigest()[:16]


def quantized_student(model: SamplingModel, path: Path, activations_too: bool = False) -> SamplingModel:
    """The same model with the student's UNet and WriteNet from a file of launch/quantize.py.

    model: with a student. activations_too: linear layers multiply integers, which needs torchao.
    Raises ValueError in one line where the file is not of this student.
    """
    if not model.has_student:
        raise ValueError(f"--quantized {path}: belongs to a student; name its run with --checkpoint")
    note = read_note(path)
    if note.get("student") != student_hash(model):
        of = note.get("checkpoint")
        raise ValueError(f"--quantized {path}: was made of another student ({of}), not of {model.checkpoint}")
    with model.roles.teacher() as teacher:  # its layers are plain ones, without an adapter's
        student = own_structure(teacher)
    assert isinstance(student, AnyText2)
    load_quantized(student, path)
    if activations_too:
        quantize_activations(student)
    roles = QuantizedRoles(student, model.roles)
    return move_model(replace(model, roles=roles), model.device)
