"""The roles of one set of frozen weights: teacher (no adapter), student, its moving average, fake score (adapters).

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from anytext2.core.batch import Conditions, Control
from anytext2.model.anytext2 import AnyText2

STUDENT, EMA, FAKE_SCORE = "student", "average", "fake"
"""Names of the adapters: the student, the moving average of its weights, and the fake score of DMD."""


class Roles(Protocol):
    """Selects the role of the base weights. Outside the contexts the student's adapter is active."""

    @property
    def model(self) -> AnyText2: ...

    def teacher(self) -> AbstractContextManager[object]:
        """Adapters off, inference mode: tensors created inside must be cloned before they enter a graph."""

    def target(self) -> AbstractContextManager[object]:
        """The weights of the consistency target (the student or its average), inference mode."""

    def using(self, adapter: str) -> AbstractContextManager[object]:
        """Another adapter instead of the student's, with its gradients."""


class AdapterRoles:
    """The roles of a model with PEFT adapters.

    `wrapped` is the PeftModel, or the bare model where base weights are trained and there is no student. The
    consistency target is the moving average if there is such an adapter, else the student.
    """

    def __init__(self, wrapped: nn.Module) -> None:
        self.wrapped = wrapped
        self._adapted = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
        self._target = EMA if isinstance(wrapped, PeftModel) and EMA in wrapped.peft_config else STUDENT

    @property
    def model(self) -> AnyText2:
        model = self.wrapped.get_base_model() if isinstance(self.wrapped, PeftModel) else self.wrapped
        assert isinstance(model, AnyText2)
        return model

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """The undistilled model, in inference mode; its tensors must be cloned before autograd saves them."""
        self._switch(False)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        # PEFT's disable_adapter() also searches the whole model twice for inconsistent layers: 59 ms a call in the
        # official size, against 9 ms for this. Its enable_adapters() would leave only one adapter trainable.
        for layer in self._adapted:
            layer._disable_adapters = not on

    @contextmanager
    def target(self) -> Iterator[None]:
        """The consistency target, in inference mode."""
        with self.using(self._target), torch.inference_mode():
            yield

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Another adapter instead of the student's."""
        self._choose(adapter)
        try:
            yield
        finally:
            self._choose(STUDENT)

    def _choose(self, adapter: str) -> None:
        # PEFT's set_adapter() would make the chosen one trainable and the others not.
        for layer in self._adapted:
            layer._active_adapter = [adapter]


def predict_noise(model: AnyText2, x: Tensor, t: Tensor, conditions: Conditions, control: Control) -> Tensor:
    """The model's eps for ``x`` [B,C,h,w] at ``t`` [B], in at least float32 whatever the model computes in."""
    eps = model.predict_noise(x.to(conditions.image_context.dtype), t, conditions.image_context, control)
    return eps.to(torch.promote_types(eps.dtype, torch.float32))
