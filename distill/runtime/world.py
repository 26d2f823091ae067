"""The processes of a run: which of them this one is, and what they tell each other.

`engine.init_world` joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def on_main(world: World, call: Callable[[], T]) -> T:
    """What `call()` returns on rank 0, on every rank; a ValueError that it raises there, too. Collective.

    The value must be picklable.
    """
    answer: list[Any] = [None, None]
    if world.is_main:
        try:
            answer[0] = call()
        except ValueError as error:
            answer[1] = error
    if world.size > 1:
        dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return cast(T, answer[0])


def gather(value: Any) -> list[Any]:
    """Every rank's (picklable) value, in order of rank, on every rank. Collective; needs `init_world` only."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has gone, or does not answer."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "closed by peer"))


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
