"""A student with other adapters beside its own, such as styles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import PeftModel

from anytext2.model.anytext2 import AnyText2
from distill.adapters.added import AddedAdapters
from distill.adapters.lora import attach_student
from distill.adapters.merging import MergedRoles
from distill.adapters.roles import AdapterRoles
from distill.inference.loading import SamplingModel, move_model


def add_adapters(
    model: SamplingModel, added: Sequence[tuple[Path, float]], merge: bool = False, keep_teacher: bool = True
) -> SamplingModel:
    """The same model with more LoRAs on its student, each with its scale; the teacher stays as it is.

    model: loaded without `merge`. merge, keep_teacher: as of `load_sampling_model`.
    Raises ValueError in one line where there is no student's adapter, or for a LoRA that does not fit.
    """
    wrapped = model.roles.wrapped if isinstance(model.roles, AdapterRoles) else None
    if model.checkpoint is None or not isinstance(wrapped, PeftModel):
        raise ValueError(f"--add {added[0][0]}: needs a student's adapter beside it; name one with --checkpoint")
    base = wrapped.unload()  # type: ignore[operator]
    assert isinstance(base, AnyText2)
    adapters = AddedAdapters.read(model.checkpoint, added, base)
    student = attach_student(base, adapters.weights())
    roles = MergedRoles(student, keep_teacher) if merge else AdapterRoles(student)
    return move_model(replace(model, roles=roles, added=adapters), model.device)


def with_scales(model: SamplingModel, scales: Sequence[float]) -> SamplingModel:
    """The model with other scales of its added adapters, in place. Raises ValueError where they cannot be changed."""
    wrapped = model.roles.wrapped if isinstance(model.roles, AdapterRoles) else None
    if model.added is None or not isinstance(wrapped, PeftModel):
        raise ValueError("scales: the model has no added adapters, or they are merged; load it with them, unmerged")
    adapters = model.added.with_scales(scales)
    adapters.set_on(wrapped)
    return replace(model, added=adapters)
