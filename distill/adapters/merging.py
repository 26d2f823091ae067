"""The student with its adapter merged into the weights, for sampling: it has no kernels of PEFT's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from anytext2.model.anytext2 import AnyText2
from distill.adapters.roles import STUDENT, without_adapters


class MergedRoles:
    """Student and teacher as networks without PEFT's layers.

    Only the adapted layers have weights of their own in both. keep_teacher: False: the teacher cannot be sampled, and
    its weights of the adapted layers are freed with `wrapped`, which this object does not hold.
    """

    def __init__(self, wrapped: PeftModel, keep_teacher: bool) -> None:
        base = wrapped.get_base_model()
        assert isinstance(base, AnyText2)
        self.model = without_adapters(base, _merged_layer)
        self._teacher = without_adapters(base) if keep_teacher else None

    @property
    def networks(self) -> list[AnyText2]:
        """What has to be moved to another device or dtype. They share the parameters of all other layers."""
        return [self.model] if self._teacher is None else [self.model, self._teacher]

    @contextmanager
    def teacher(self) -> Iterator[AnyText2]:
        """The undistilled model, in inference mode. Raises ValueError where it was not kept."""
        if self._teacher is None:
            raise ValueError("the teacher's weights were not kept beside the merged student; load the model with them")
        with torch.inference_mode():
            yield self._teacher


class StudentRoles:
    """A student as a merged file holds it, and the teacher that it came from, which is loaded when it is asked for.

    They share no weights.
    """

    def __init__(self, model: AnyText2, load_teacher: Callable[[], AnyText2]) -> None:
        self.model = model.requires_grad_(False)
        self._load_teacher = load_teacher
        self._teacher: AnyText2 | None = None

    @property
    def networks(self) -> list[AnyText2]:
        """What has to be moved to another device or dtype."""
        return [self.model] if self._teacher is None else [self.model, self._teacher]

    @contextmanager
    def teacher(self) -> Iterator[AnyText2]:
        """The undistilled model, in inference mode. Raises ValueError where its weights are not there."""
        if self._teacher is None:
            teacher = self._load_teacher().requires_grad_(False)
            self._teacher = teacher.to(device=self.model.device, dtype=self.model.dtype).eval()
        with torch.inference_mode():
            yield self._teacher


def _merged_layer(layer: BaseTunerLayer) -> nn.Module:
    """A base layer of its own with the student's adapter in its weight, by PEFT's merge in float64, rounded once."""
    assert isinstance(layer, nn.Module)
    exact = deepcopy(layer).double()
    exact.merge(safe_merge=True, adapter_names=[STUDENT])
    merged: nn.Module = exact.get_base_layer()
    return merged.to(layer.get_base_layer().get_parameter("weight").dtype)
