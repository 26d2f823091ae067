"""CUDA graphs: the kernels of a function, recorded once and launched together from then on."""

from __future__ import annotations

import gc
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
    """CUDA graphs on the current device, all made on one stream: libraries keep a workspace for each that they meet."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> list[Tensor]:
        stream, current = self._own_stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        outputs: list[Tensor] = []
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                outputs = list(run())
        current.wait_stream(stream)
        return outputs

    def record(self, run: Run, pool: Any) -> Captured:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        gc.collect()  # during a capture nothing can be freed for it
        try:
            # Other threads (pinned memory, NCCL's watchdog) call CUDA meanwhile; only this one is watched.
            recording = torch.cuda.graph(graph, pool=pool, stream=self._own_stream(), capture_error_mode="thread_local")
            if torch.is_inference_mode_enabled():
                # Before torch 2.11 the random generator would keep a tensor of the mode in which it is first recorded.
                with torch.inference_mode(False), recording, torch.inference_mode():
                    outputs = list(run())
            else:
                with recording:
                    outputs = list(run())
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind
        return Captured(graph.replay, outputs)

    def _own_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream
