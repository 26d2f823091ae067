"""Counts what a rank hands to torch.distributed's collectives, by collective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

_WHOLE = {
    "all_reduce": (0, "tensor"),
    "reduce": (0, "tensor"),
    "broadcast": (0, "tensor"),
    "reduce_scatter_tensor": (1, "input"),
    "all_gather_into_tensor": (0, "output_tensor"),
    "all_gather": (0, "tensor_list"),
    "batch_isend_irecv": (0, "p2p_op_list"),
}
"""For each collective the argument that holds its whole data: what goes in, or what comes out of a gathering."""


@dataclass
class Collectives:
    """calls: how often each collective was called. sizes: bytes of their whole data, summed up; of `batch_isend_irecv`
    what this rank sends."""

    calls: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted_collectives() -> Iterator[Collectives]:
    """Counts the calls inside the block that go through Python, as DeepSpeed's and this trainer's do (DDP's do not)."""
    found = Collectives()
    originals = {name: getattr(dist, name) for name in _WHOLE}

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        position, keyword = _WHOLE[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            found.calls[name] += 1
            found.sizes[name] += _bytes(args[position] if len(args) > position else kwargs[keyword])
            return original(*args, **kwargs)

        return call

    for name, original in originals.items():
        setattr(dist, name, counting(name, original))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _bytes(data: torch.Tensor | list[torch.Tensor] | list[dist.P2POp]) -> int:
    items = [data] if torch.is_tensor(data) else data
    tensors = [item.tensor if isinstance(item, dist.P2POp) else item for item in items if _leaves(item)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _leaves(item: torch.Tensor | dist.P2POp) -> bool:
    return torch.is_tensor(item) or item.op is dist.isend
