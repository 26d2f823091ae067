"""Finds where one micro-step makes the host wait for the accelerator, without an accelerator.

The step runs with everything that would be on the GPU on torch's `meta` device, whose tensors have no values. What
needs a value on the host therefore fails with torch's own error, and so does an operation on a host tensor and a device
tensor. Copies from the host are counted; one that is not `non_blocking` makes the host wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anytext2.model.anytext2 import build_model, load_model_config
from distill.config.schema import Recipe
from distill.data.loader import LoadedBatch
from distill.inference.model import make_schedule
from distill.training.build import make_objective, make_roles
from launch.bench.workload import Workload

META = torch.device("meta")


def count_copies(recipe: Recipe, loaded: LoadedBatch) -> Counter[str]:
    """Copies to the device in the second micro-step of a run: `async`, and `blocking` ones, for which the host waits.

    The first step copies what is kept for a whole run. Raises torch's error where the step needs a device's value.
    """
    config = load_model_config(recipe.model.config)
    model = build_model(config, "meta", torch.float16)
    roles, _ = make_roles(model, make_objective(recipe, make_schedule(config)), recipe)
    roles.wrapped.to(META)
    step = Workload(recipe, roles, loaded, (), META).micro_step()
    counter = _CopyCounter()
    with _meta_as_accelerator():
        step.loss(step.read()).backward()
        with counter:
            step.loss(step.read()).backward()
    return counter.copies


class _CopyCounter(TorchDispatchMode):
    """Counts the copies from the host to the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # In inference mode, `aten.to` comes as it is; otherwise as `_to_copy`.
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_):
            source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            if source.device.type == "cpu" and result.device == META:
                is_async = (kwargs or {}).get("non_blocking") or True in args[1:]
                self.copies["async" if is_async else "blocking"] += 1
        return result


@contextmanager
def _meta_as_accelerator() -> Iterator[None]:
    """torch has no autocast for the meta device, so that asking for it is an error."""
    original = torch.is_autocast_enabled

    def is_autocast_enabled(device_type: str = "cuda") -> bool:
        return device_type != "meta" and original(device_type)

    with patch.object(torch, "is_autocast_enabled", is_autocast_enabled):
        yield
