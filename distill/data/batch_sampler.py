"""The endless order of samples: which stands where, for the whole run, whoever computes it.

Epoch e is one shuffled pass over the data, in which a source of weight w occurs w times (w = 0.5: a random half of it,
another one in every epoch). Global batch b is the next `effective` samples; batches may straddle two epochs, so that
nothing is dropped. With several picture sizes every global batch has one size, so that every micro-batch has, whatever
the number of ranks. All of this is a function of the seed: neither world size nor resuming changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from anytext2.core.rng import hash_rng, numpy_rng, pick
from anytext2.data.geometry import Size


@dataclass(frozen=True)
class SampleKey:
    """One position of the order: which pass over the data, which sample of it, and its size (None: the dataset's)."""

    epoch: int
    index: int
    size: Size | None = None


class BatchSampler(Protocol):
    """Global batches by number, from 0 on without end."""

    @property
    def length(self) -> int:
        """Samples of one epoch."""

    def batch(self, number: int, size: int) -> list[SampleKey]: ...


@dataclass(frozen=True)
class Group:
    """Samples (int64 [n], indices of the dataset) that occur `weight` times in an epoch."""

    indices: np.ndarray
    weight: float = 1.0

    @property
    def length(self) -> int:
        return int(self.weight) * len(self.indices) + self.partly

    @property
    def partly(self) -> int:
        """How many of the samples occur once more than the others."""
        return round(self.weight % 1 * len(self.indices))


class ShuffledBatchSampler:
    """All samples of some groups, shuffled anew in every epoch. A second time in one epoch has its own Key.epoch."""

    def __init__(self, groups: Sequence[Group] | int, seed: int) -> None:
        """groups: an integer stands for that many samples of weight 1."""
        self._groups = [Group(np.arange(groups))] if isinstance(groups, int) else list(groups)
        self.length = sum(group.length for group in self._groups)
        if self.length < 1:
            raise ValueError("data.sources: no usable sample is left; launch with data that has at least one image")
        self.seed = seed
        self._passes = max(1, *(math.ceil(group.weight) for group in self._groups))
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample and pass of every place of the epoch."""
        indices, passes = [], []
        for number, group in enumerate(self._groups):
            for turn in range(int(group.weight)):
                indices.append(group.indices)
                passes.append(np.full(len(group.indices), turn))
            if group.partly:
                chosen = numpy_rng(self.seed, epoch, number, "part of a source").permutation(len(group.indices))
                indices.append(group.indices[chosen[: group.partly]])
                passes.append(np.full(group.partly, int(group.weight)))
        shuffle = numpy_rng(self.seed, epoch, 0, "order").permutation(self.length)
        return np.concatenate(indices)[shuffle], np.concatenate(passes)[shuffle]

    def at(self, position: int) -> SampleKey:
        """Position p = 0, 1, 2, ... counts the samples of the whole run."""
        epoch, offset = divmod(position, self.length)
        indices, passes = self._epoch(epoch)
        return SampleKey(epoch * self._passes + int(passes[offset]), int(indices[offset]))

    def batch(self, number: int, size: int) -> list[SampleKey]:
        return [self.at(position) for position in range(number * size, (number + 1) * size)]


@dataclass(frozen=True)
class Bucket:
    """Samples whose pictures have about one shape, and the sizes in which they are shown, one drawn for each batch."""

    order: ShuffledBatchSampler
    sizes: tuple[Size, ...]


class BucketBatchSampler:
    """Takes turns between buckets in proportion to their samples; each goes on where its last batch ended."""

    def __init__(self, buckets: Sequence[Bucket], seed: int) -> None:
        self._buckets, self.seed = list(buckets), seed
        self.length = sum(bucket.order.length for bucket in self._buckets)
        self._turns: list[tuple[int, int]] = []  # of each batch: its bucket, and how many that bucket had before
        self._counts = [0] * len(self._buckets)

    def batch(self, number: int, size: int) -> list[SampleKey]:
        chosen, turn = self._turn(number)
        bucket = self._buckets[chosen]
        shown = bucket.sizes[pick(hash_rng(self.seed, 0, number, "size of a batch"), len(bucket.sizes))]
        return [replace(key, size=shown) for key in bucket.order.batch(turn, size)]

    def _turn(self, number: int) -> tuple[int, int]:
        """Always the bucket that is furthest behind its share; remembered, because each depends on those before."""
        while len(self._turns) <= number:
            done = len(self._turns) + 1
            behind = [
                done * bucket.order.length / self.length - count
                for bucket, count in zip(self._buckets, self._counts, strict=True)
            ]
            chosen = behind.index(max(behind))
            self._turns.append((chosen, self._counts[chosen]))
            self._counts[chosen] += 1
        return self._turns[number]


def nearest_aspect_ratio(size: Size, shapes: Sequence[float]) -> int:
    """Of several ratios of width to height the number of the one that distorts a picture of this size least."""
    ratio = math.log(size[1] / size[0])
    return min(range(len(shapes)), key=lambda number: abs(ratio - math.log(shapes[number])))
