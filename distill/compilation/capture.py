"""CUDA graphs: the kernels of a function, recorded once and launched together from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before a capture: libraries choose their algorithms and allocate their workspaces in the first ones."""

Run = Callable[[], Sequence[Tensor]]
"""A function without arguments. It reads tensors that keep their place in memory."""


@dataclass(frozen=True)
class Captured:
    """A recorded function. `replay` computes again, from what the memory of its inputs holds, into `outputs`."""

    replay: Callable[[], None]
    outputs: list[Tensor]


class Capture(Protocol):
    """Records functions. In a test it is a double that calls the function at each replay."""

    def new_pool(self) -> Any:
        """Memory for graphs whose intermediate values may overwrite each other's."""

    def warm_up(self, run: Run) -> list[Tensor]:
        """Calls `run` as often as a capture needs it; returns what its last call gave."""

    def record(self, run: Run, pool: Any) -> Captured:
        """Records one call of `run`; its memory comes from the pool."""


class CudaCapture:
    """CUDA graphs on the current device."""

    def new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> list[Tensor]:
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        outputs: list[Tensor] = []
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                outputs = list(run())
        current.wait_stream(stream)
        return outputs

    def record(self, run: Run, pool: Any) -> Captured:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads (pinned memory, NCCL's watchdog) call CUDA meanwhile; only this one is watched.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = list(run())
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        return Captured(graph.replay, outputs)
