"""A double of CUDA's graphs for a CPU."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from distill.compilation.capture import Captured, Run


class Rerun:
    """Records nothing: a replay calls the function again and writes its results into the first ones.

    As with CUDA, a pool ends with the last of its graphs.
    """

    def __init__(self) -> None:
        self.records = self.pools = 0
        self._graphs: Counter[int] = Counter()

    def new_pool(self) -> int:
        self.pools += 1
        return self.pools

    def warm_up(self, run: Run) -> list[Tensor]:
        return list(run())

    def record(self, run: Run, pool: Any) -> Captured:
        if pool in self._graphs and not self._graphs[pool]:
            raise RuntimeError(f"pool {pool} has ended")
        self.records += 1
        outputs = list(run())

        @torch.no_grad()
        def replay() -> None:
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value)

        captured = Captured(replay, outputs)
        self._graphs[pool] += 1
        weakref.finalize(captured, self._graphs.subtract, [pool])
        return captured
