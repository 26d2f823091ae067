"""Counts what one micro-step dispatches: ATen operations, calls of modules, and values read back to the host.

On a GPU, Python dispatches operations one by one. Below some batch size their number, not the arithmetic, is what a
micro-step costs; and a value that is read back to the host stops the queue.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

_READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique")
"""Methods of Tensor after which the host waits for the device."""


class OperationCounter(TorchDispatchMode):
    """Counts the ATen operations inside its context by name, such as `aten.addmm`, in all threads of autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Counts the calls of Tensor methods inside the block that make the host wait for a GPU."""
    found: Counter[str] = Counter()
    originals = {name: getattr(torch.Tensor, name) for name in _READS}
    thread = threading.get_ident()

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                found[name] += 1
            return original(self, *args, **kwargs)

        return method

    for name, original in originals.items():
        setattr(torch.Tensor, name, counting(name, original))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


@contextmanager
def counted_module_calls() -> Iterator[Counter[str]]:
    """Counts the calls of modules inside the block by class name."""
    found: Counter[str] = Counter()

    def count(module: torch.nn.Module, _: Any) -> None:
        found[type(module).__name__] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield found
    finally:
        handle.remove()
