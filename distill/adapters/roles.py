"""The roles of one set of frozen weights: teacher (no adapter), student, its moving average, fake score (adapters).

Shape legend: B batch, C channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Protocol, TypeVar, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from anytext2.core.batch import Conditions, Control
from anytext2.model.anytext2 import AnyText2
from anytext2.model.layers import ProjectedContext
from distill.runtime.device_settings import fp16_accumulation, require_fp16_accumulation

_Module = TypeVar("_Module", bound=nn.Module)

STUDENT, EMA, FAKE_SCORE = "student", "average", "fake"
"""Names of the adapters: the student, the moving average of its weights, and the fake score of DMD."""


class SamplingRoles(Protocol):
    """What sampling needs: the model with the student's adapter, and the teacher."""

    @property
    def model(self) -> AnyText2: ...

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What has to be moved to another device or dtype."""

    def teacher(self) -> AbstractContextManager[AnyText2]:
        """The undistilled model, in inference mode: its tensors must be cloned before they enter a graph."""


class Roles(SamplingRoles, Protocol):
    """Selects the role of the base weights. Outside the contexts the student's adapter is active."""

    def target(self) -> AbstractContextManager[object]:
        """The weights of the consistency target (the student or its average), inference mode."""

    def using(self, adapter: str) -> AbstractContextManager[object]:
        """Another adapter instead of the student's, with its gradients."""


class AdapterRoles:
    """The roles of a model with PEFT adapters.

    `wrapped` is the PeftModel, or the bare model where base weights are trained and there is no student. The
    consistency target is the moving average if there is such an adapter, else the student.
    teacher_fp16_accumulation: as in distill/config/schema.py. `active`: the adapter that computes outside of `teacher`.
    """

    def __init__(self, wrapped: nn.Module, teacher_fp16_accumulation: bool = False) -> None:
        self.wrapped = wrapped
        if teacher_fp16_accumulation:
            require_fp16_accumulation()
        self.teacher_fp16_accumulation = teacher_fp16_accumulation
        self._adapted = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
        self._target = EMA if isinstance(wrapped, PeftModel) and EMA in wrapped.peft_config else STUDENT
        self._teacher = without_adapters(self.model)
        self._choose(STUDENT)

    @property
    def model(self) -> AnyText2:
        model = self.wrapped.get_base_model() if isinstance(self.wrapped, PeftModel) else self.wrapped
        assert isinstance(model, AnyText2)
        return model

    @property
    def networks(self) -> Sequence[nn.Module]:
        return [self.wrapped]

    @contextmanager
    def teacher(self) -> Iterator[AnyText2]:
        """The undistilled model, in inference mode; its tensors must be cloned before autograd saves them."""
        with torch.inference_mode(), fp16_accumulation(self.teacher_fp16_accumulation):
            yield self._teacher

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
        self.active = adapter
        # PEFT's set_adapter() would make the chosen one trainable and the others not. All layers share one list: torch
        # compiles a block again where lists that were one object have become several.
        active = [adapter]
        for layer in self._adapted:
            layer._active_adapter = active


def without_adapters(
    module: _Module, plain: Callable[[BaseTunerLayer], nn.Module] = BaseTunerLayer.get_base_layer
) -> _Module:
    """The same network without PEFT's layers, over the same parameters and buffers, in evaluation mode.

    Adapted layers are replaced by what `plain` makes of them (their base layers), the modules above them by shallow
    copies, which share the original's dictionaries of parameters and buffers: `to` and loading weights change both.
    Modules without adapted layers are the original's own. An unadapted module is returned as it is.
    """
    if isinstance(module, BaseTunerLayer):
        return cast(_Module, plain(module))
    if not any(isinstance(inner, BaseTunerLayer) for inner in module.modules()):
        return module
    twin = copy(module)
    twin._modules = {name: child and without_adapters(child, plain) for name, child in module._modules.items()}
    twin.training = False
    return twin


def predict_noise(
    model: AnyText2,
    x: Tensor,
    t: Tensor,
    conditions: Conditions,
    control: Control,
    projected: ProjectedContext | None = None,
    attnx_scale: float = 1.0,
) -> Tensor:
    """The model's eps for ``x`` [B,C,h,w] at ``t`` [B], in at least float32 whatever the model computes in.

    projected: `AnyText2.project_context` of the conditions, which several calls share. attnx_scale: see `UNet.forward`.
    """
    context = conditions.image_context if projected is None else projected
    scale = () if attnx_scale == 1.0 else (attnx_scale,)  # training calls the model as it was compiled, without it
    eps = model.predict_noise(x.to(conditions.image_context.dtype), t, context, control, *scale)
    return eps.to(torch.promote_types(eps.dtype, torch.float32))
