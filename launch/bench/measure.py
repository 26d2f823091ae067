"""Measures a call on a CPU or a GPU: seconds, FLOPs, memory. Nothing here knows what the call does."""

from __future__ import annotations

import platform
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], object]


def _addmm_flops(_: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _attention_flops(query: Any, key: Any, *args: Any, products: int = 2, **kwargs: Any) -> int:
    """Of products of queries [B, heads, Q, D] and keys [B, heads, S, D], or of matrices of the same sizes."""
    batch, heads, queries, width = query
    return 2 * products * batch * heads * queries * key[2] * width


def _attention_backward_flops(_: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> int:
    return _attention_flops(query, key, products=5)


# `FlopCounterMode` does not know these. Its formulas get shapes in place of tensors.
_FLOPS: dict[Any, Any] = {
    torch.ops.aten.addmm_: _addmm_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def describe(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    is_cuda = device.type == "cuda"
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given. Clocks are read after this."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(
    calls: Mapping[str, Call], device: torch.device, repeats: int = 3, warmups: int = 1
) -> dict[str, float]:
    """Median seconds of each call. The calls take turns, so that other load on the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warmups, repeats):
        for name, call in calls.items():
            synchronize(device)
            began = time.perf_counter()
            call()
            synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def flop_counter() -> FlopCounterMode:
    """Counts the FLOPs of matrix products, convolutions and attentions; a multiplication and an addition are two."""
    return FlopCounterMode(display=False, custom_mapping=_FLOPS)


def count_flops(call: Call) -> int:
    """The FLOPs of a call."""
    with flop_counter() as counter:
        call()
    return int(counter.get_total_flops())


def weight_bytes(network: nn.Module) -> int:
    """Bytes of the parameters and buffers of a network; what two of them share is counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(network)}
    return sum(storage.nbytes() for storage in storages.values())


class MemoryGrowth:
    """Measures the most bytes of tensors that the block holds at one time, beyond those that exist before it.

    On a GPU the allocator's own peak, which includes the workspaces of kernels; on a CPU the sum of all live tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._live = device, _LiveTensors()
        self._before = self.peak = 0

    def __enter__(self) -> MemoryGrowth:
        if self._device.type == "cuda":
            synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            synchronize(self._device)
            self.peak = torch.cuda.max_memory_allocated(self._device) - self._before
        else:
            self._live.__exit__(*error)
            self.peak = self._live.peak


class _LiveTensors(TorchDispatchMode):
    """Sums up the storages of all tensors that operations inside its context return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self._now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # A result that shares an argument's storage is a view of it, or was changed in place.
            if isinstance(tensor, Tensor) and _address(tensor) not in given:
                self._add(tensor)
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address and address not in self._known:
            self._known.add(address)
            self._now += size
            weakref.finalize(storage, self._remove, address, size)

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
