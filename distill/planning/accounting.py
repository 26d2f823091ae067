"""Adds up, operation by operation, what a micro-step keeps in memory and computes.

It works on tensors of torch's `meta` device, which have no values, and on real ones.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

OTHER = "other"

_FLOPS = {torch.ops.aten.addmm_: lambda out, left, right, **_: 2 * left.shape[0] * left.shape[1] * right.shape[1]}
"""What torch's registry of FLOP formulas lacks."""


class Accounting(TorchDispatchMode):
    """Inside its context, counts live bytes of a device's tensors by the part of the step that made them, FLOPs and
    operations by part.

    device: whose tensors count, if an operation inside made them. `part` names what is running; see `running`. live:
    bytes by part now; at_peak: when their sum was highest.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.part = OTHER
        self.live: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self._now = self._peak = 0
        self._known: dict[int, tuple[str, int]] = {}
        self._whole: set[Any] = set()

    @property
    def peak(self) -> int:
        """The most bytes at one time."""
        return self._peak

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """What is made and computed inside belongs to this part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func.overloadpacket) or _FLOPS.get(func.overloadpacket)
        if count is None and func not in self._whole:
            # Inference mode passes composite operations on whole; their parts are what a device is given.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self._whole.add(func)
        given = {_key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if any(x.device.type == self._device.type for x in made):
            self.operations[self.part] += 1
        for tensor in made:
            if tensor.device.type == self._device.type and _key(tensor) not in given:
                self._add(tensor)
        if count is not None:
            self.flops[self.part] += int(count(*args, **kwargs, out_val=result))
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = (self.part, size)
        self.live[self.part] += size
        self._now += size
        if self._now > self._peak:
            self._peak, self.at_peak = self._now, self.live.copy()
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        part, size = self._known.pop(key)
        self.live[part] -= size
        self._now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
