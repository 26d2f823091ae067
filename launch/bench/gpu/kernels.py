"""Which kernels a GPU runs in a call, by torch.profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MATRIX = ("gemm", "conv", "cutlass", "xmma", "nvjet", "wgrad", "dgrad", "flash", "fmha", "sdpa", "attention", "mma")
"""In the names of kernels whose time is that of matrix products; the others read and write memory."""

GENERATED = ("triton_poi", "triton_red", "triton_per")
"""Beginnings of names that a compiler makes of all operations that it has fused, convolutions before and after, too."""

NO_KERNELS = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")
"""What the profiler puts on a GPU's line beside kernels and copies: spans in which somebody waits."""


@dataclass(frozen=True)
class Kernel:
    """The calls of one kernel. start, end: seconds of each on the profiler's clock."""

    name: str
    spans: tuple[tuple[float, float], ...]

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self.spans)

    @property
    def is_matrix(self) -> bool:
        return not self.name.startswith(GENERATED) and any(word in self.name.lower() for word in MATRIX)


def record_kernels(call: Callable[[], object], device: torch.device) -> list[Kernel]:
    """The kernels of one call, the longest first. Empty on a CPU."""
    if device.type != "cuda":
        return []
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
        call()
        torch.cuda.synchronize(device)
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in recorded.events() or ():
        is_note = getattr(event, "is_user_annotation", False) or event.name in NO_KERNELS
        if event.device_type == DeviceType.CUDA and not is_note:
            spans[event.name].append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    kernels = [Kernel(name, tuple(found)) for name, found in spans.items()]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def busy_seconds(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one kernel ran."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(span for kernel in kernels for span in kernel.spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


def matrix_seconds(kernels: Sequence[Kernel]) -> float:
    """Seconds of the kernels of matrix products, convolutions and attentions."""
    return sum(kernel.seconds for kernel in kernels if kernel.is_matrix)
