"""Every random draw is a function of (seed, epoch, global sample index, purpose), never of rank, worker or process.

That makes a run reproducible, resumable and independent of the number of processes: whoever computes sample
`index` of `epoch` draws the same numbers.

Shape legend: B batch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

_BLOCK, _EIGHT = struct.Struct("<QQ"), struct.Struct("<8Q")
_SEED_BITS = 63  # torch and numpy both accept any non-negative int64


def seed_for(seed: int, epoch: int, index: int, purpose: str) -> int:
    """A 63-bit seed from BLAKE2b of the tuple: the same on every machine, unrelated to that of any other tuple."""
    # '\n' cannot occur inside a decimal number, so that no two tuples share one message.
    message = f"{int(seed)}\n{int(epoch)}\n{int(index)}\n{purpose}".encode()
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _SEED_BITS)


def numpy_rng(seed: int, epoch: int, index: int, purpose: str) -> np.random.Generator:
    """NumPy generator of one draw (or one series of draws made in a fixed order)."""
    return np.random.default_rng(seed_for(seed, epoch, index, purpose))


def torch_generator(seed: int, epoch: int, index: int, purpose: str) -> torch.Generator:
    """CPU generator of one draw; numbers drawn on the CPU are the same whatever the accelerator is."""
    return torch.Generator("cpu").manual_seed(seed_for(seed, epoch, index, purpose))


class Uniform(Protocol):
    """A source of uniform numbers in [0, 1): `HashRng` and NumPy's generators are some."""

    def random(self) -> float: ...


class HashRng:
    """Uniform numbers from BLAKE2b of a seed and a counter, eight at a time.

    For the few numbers of one draw: NumPy's generators take tens of times longer to make.
    """

    __slots__ = ("_ahead", "_seed", "_turn")

    def __init__(self, seed: int) -> None:
        self._seed, self._turn = seed, 0
        self._ahead: tuple[int, ...] = ()

    def random(self) -> float:
        """The next number: 53 random bits, as a fraction of 2^53."""
        if not self._ahead:
            digest = hashlib.blake2b(_BLOCK.pack(self._seed, self._turn), digest_size=64).digest()
            self._ahead, self._turn = _EIGHT.unpack(digest), self._turn + 1
        number, self._ahead = self._ahead[0], self._ahead[1:]
        return (number >> 11) * 2.0**-53


def hash_rng(seed: int, epoch: int, index: int, purpose: str) -> HashRng:
    """The cheap generator of one draw."""
    return HashRng(seed_for(seed, epoch, index, purpose))


def pick(rng: Uniform, n: int) -> int:
    """One of 0..n-1."""
    return min(int(rng.random() * n), n - 1)


def order(rng: Uniform, n: int) -> list[int]:
    """0..n-1 in random order."""
    keys = [rng.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


def between(rng: Uniform, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * rng.random()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one micro-batch: row b belongs to sample `indices[b]` in its epoch `epochs[b]`.

    Rows do not know of each other: a sample gets the same numbers in whatever batch it is computed.
    """

    seed: int
    epochs: tuple[int, ...]
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.epochs) == len(self.indices), "one epoch for each sample index"

    @property
    def size(self) -> int:
        return len(self.indices)

    def normal(
        self,
        purpose: str,
        shape_per_sample: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Standard normal numbers [B, *shape_per_sample], drawn in float32 and then cast to `dtype`."""
        rows = [torch.randn(tuple(shape_per_sample), generator=generator) for generator in self._generators(purpose)]
        return torch.stack(rows).to(device=device, dtype=dtype)

    def uniform(self, purpose: str, low: float, high: float, device: torch.device | str | None = None) -> torch.Tensor:
        """Uniform numbers in [low, high), float32 [B]."""
        rows = [torch.rand((), generator=generator, dtype=torch.float64) for generator in self._generators(purpose)]
        return (low + (high - low) * torch.stack(rows)).to(device=device, dtype=torch.float32)

    def integers(
        self, purpose: str, low: int, high_exclusive: int, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Uniform integers in [low, high_exclusive), int64 [B]."""
        rows = [torch.randint(low, high_exclusive, (), generator=generator) for generator in self._generators(purpose)]
        return torch.stack(rows).to(device=device)

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [
            torch_generator(self.seed, epoch, index, purpose)
            for epoch, index in zip(self.epochs, self.indices, strict=True)
        ]
