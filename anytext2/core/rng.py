"""Random number generators seeded by (seed, epoch, global sample index, purpose), never by rank, worker or process.

A run is therefore reproducible, resumable and independent of the number of processes: every process draws the same
numbers for sample `index` of `epoch`.

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

from anytext2.core.transfer import to_device

_MESSAGE, _EIGHT_WORDS = struct.Struct("<QQ"), struct.Struct("<8Q")
_SEED_BITS = 63  # torch and numpy both accept any non-negative int64


def seed_for(seed: int, epoch: int, index: int, purpose: str) -> int:
    """A 63-bit seed: BLAKE2b of the arguments, the same on every machine."""
    # A decimal number contains no '\n', so that different arguments give different messages.
    message = f"{int(seed)}\n{int(epoch)}\n{int(index)}\n{purpose}".encode()
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _SEED_BITS)


def numpy_rng(seed: int, epoch: int, index: int, purpose: str) -> np.random.Generator:
    """A NumPy generator for one purpose. Its numbers depend on the order in which they are drawn."""
    return np.random.default_rng(seed_for(seed, epoch, index, purpose))


def torch_generator(seed: int, epoch: int, index: int, purpose: str) -> torch.Generator:
    """A torch CPU generator for one purpose. CPU numbers do not depend on the accelerator."""
    return torch.Generator("cpu").manual_seed(seed_for(seed, epoch, index, purpose))


class RandomSource(Protocol):
    """A source of random numbers: `HashRng`, or a NumPy generator."""

    def random(self) -> float:
        """The next uniform number in [0, 1)."""


class HashRng:
    """Uniform numbers from BLAKE2b of a seed and a counter; each digest gives eight of them.

    It is meant for a few numbers: creating a NumPy generator takes tens of times longer.
    """

    __slots__ = ("_buffer", "_counter", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed, self._counter = seed, 0
        self._buffer: tuple[int, ...] = ()

    def random(self) -> float:
        """The next uniform number in [0, 1): a multiple of 2^-53."""
        if not self._buffer:
            digest = hashlib.blake2b(_MESSAGE.pack(self._seed, self._counter), digest_size=64).digest()
            self._buffer, self._counter = _EIGHT_WORDS.unpack(digest), self._counter + 1
        number, self._buffer = self._buffer[0], self._buffer[1:]
        return (number >> 11) * 2.0**-53


def hash_rng(seed: int, epoch: int, index: int, purpose: str) -> HashRng:
    """A `HashRng` for one purpose."""
    return HashRng(seed_for(seed, epoch, index, purpose))


def choice(rng: RandomSource, n: int) -> int:
    """A uniform random integer in [0, n)."""
    return min(int(rng.random() * n), n - 1)


def permutation(rng: RandomSource, n: int) -> list[int]:
    """The numbers 0..n-1 in random order."""
    keys = [rng.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


def uniform(rng: RandomSource, low: float, high: float) -> float:
    """A uniform random number in [low, high)."""
    return low + (high - low) * rng.random()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one micro-batch: row b is drawn for sample `indices[b]` in epoch `epochs[b]`.

    A row does not depend on the other rows, so that a sample gets the same numbers in any batch.
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
        return to_device(torch.stack(rows).to(dtype), device)

    def uniform(self, purpose: str, low: float, high: float, device: torch.device | str | None = None) -> torch.Tensor:
        """Uniform numbers in [low, high), float32 [B]."""
        rows = [torch.rand((), generator=generator, dtype=torch.float64) for generator in self._generators(purpose)]
        return to_device((low + (high - low) * torch.stack(rows)).to(torch.float32), device)

    def integers(
        self, purpose: str, low: int, high_exclusive: int, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Uniform integers in [low, high_exclusive), int64 [B]."""
        rows = [torch.randint(low, high_exclusive, (), generator=generator) for generator in self._generators(purpose)]
        return to_device(torch.stack(rows), device)

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [
            torch_generator(self.seed, epoch, index, purpose)
            for epoch, index in zip(self.epochs, self.indices, strict=True)
        ]
