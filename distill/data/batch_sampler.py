"""The endless order of samples of a run, as a function of the seed alone.

Epoch e is one shuffled pass over the data, in which a source of weight w occurs w times (w = 0.5: a random half of it,
another one in every epoch). Global batch b is the next `effective` samples; batches may straddle two epochs, so that
nothing is dropped. With several picture sizes, every global batch has one size, and so has every micro-batch on any
number of ranks. Neither world size nor resuming changes the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from anytext2.core.rng import choice, hash_rng, numpy_rng
from anytext2.data.geometry import Size


@dataclass(frozen=True)
class SampleKey:
    """One position of the order. epoch, index: of the sample; size: (H, W), None for the dataset's own."""

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
class WeightedIndices:
    """Samples that occur `weight` times in an epoch; indices: int64 [n], of the dataset."""

    indices: np.ndarray
    weight: float = 1.0

    @property
    def length(self) -> int:
        return int(self.weight) * len(self.indices) + self.remainder

    @property
    def remainder(self) -> int:
        """How many of the samples occur once more than the others."""
        return round(self.weight % 1 * len(self.indices))


class ShuffledBatchSampler:
    """All samples of some groups, shuffled anew in every epoch. Repetitions in one epoch differ in SampleKey.epoch."""

    def __init__(self, groups: Sequence[WeightedIndices] | int, seed: int) -> None:
        """groups: an integer stands for that many samples of weight 1."""
        self._groups = [WeightedIndices(np.arange(groups))] if isinstance(groups, int) else list(groups)
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
            if group.remainder:
                chosen = numpy_rng(self.seed, epoch, number, "part of a source").permutation(len(group.indices))
                indices.append(group.indices[chosen[: group.remainder]])
                passes.append(np.full(group.remainder, int(group.weight)))
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
    """Samples of similar aspect ratio, and the sizes (H, W) of which one is drawn for each batch."""

    sampler: ShuffledBatchSampler
    sizes: tuple[Size, ...]


class BucketBatchSampler:
    """Alternates between buckets in proportion to their samples; each continues where its last batch ended."""

    def __init__(self, buckets: Sequence[Bucket], seed: int) -> None:
        self._buckets, self.seed = list(buckets), seed
        self.length = sum(bucket.sampler.length for bucket in self._buckets)
        self._turns: list[tuple[int, int]] = []  # of each batch: its bucket, and how many that bucket had before
        self._counts = [0] * len(self._buckets)

    def batch(self, number: int, size: int) -> list[SampleKey]:
        chosen, turn = self._turn(number)
        bucket = self._buckets[chosen]
        drawn = bucket.sizes[choice(hash_rng(self.seed, 0, number, "size of a batch"), len(bucket.sizes))]
        return [replace(key, size=drawn) for key in bucket.sampler.batch(turn, size)]

    def _turn(self, number: int) -> tuple[int, int]:
        """The bucket that is furthest behind its share. Turns are stored, because each depends on those before."""
        while len(self._turns) <= number:
            done = len(self._turns) + 1
            behind = [
                done * bucket.sampler.length / self.length - count
                for bucket, count in zip(self._buckets, self._counts, strict=True)
            ]
            chosen = behind.index(max(behind))
            self._turns.append((chosen, self._counts[chosen]))
            self._counts[chosen] += 1
        return self._turns[number]


def nearest_aspect_ratio(size: Size, ratios: Sequence[float]) -> int:
    """The index of the aspect ratio (width / height) that distorts a picture of this size (H, W) least."""
    own = math.log(size[1] / size[0])
    return min(range(len(ratios)), key=lambda number: abs(own - math.log(ratios[number])))
