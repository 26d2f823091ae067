"""The process group of a run: this process's rank in it, and collectives on Python objects.

`distill.training.engine.init_world` creates it.
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
    """This process's place in the process group, and its device."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def on_main(world: World, call: Callable[[], T]) -> T:
    """Calls `call()` on rank 0 and returns its (picklable) value on every rank; a ValueError is raised on every rank.

    Collective.
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


def all_gather_object(value: Any) -> list[Any]:
    """Every rank's (picklable) value in order of rank, on every rank. Collective."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_communication_error(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has ended or does not answer."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "closed by peer"))


def shutdown() -> None:
    """Destroys the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
