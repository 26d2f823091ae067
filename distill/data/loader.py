"""One rank's share of the samples: the batch arithmetic, and the loader that reads ahead.

Which rank computes a sample depends on the world size. Which samples a batch has (distill/data/batch_sampler.py), and
their random draws, do not.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from anytext2.core.batch import Batch, Sample, collate
from anytext2.core.rng import Draws, numpy_rng
from anytext2.data.dataset import AnyWordDataset, SampleError
from distill.data.batch_sampler import BatchSampler, SampleKey
from distill.runtime.signals import install_worker_signal_handlers

MAX_SUBSTITUTES = 8  # how many other samples are tried where one cannot be read


@dataclass(frozen=True)
class BatchSizes:
    """The batch sizes of a run: effective = micro x accumulation x world.

    Raises ValueError, naming what would work, where the numbers do not divide.
    """

    effective: int
    micro: int
    world: int

    def __post_init__(self) -> None:
        for name, value in (("train.effective_batch", self.effective), ("train.micro_batch", self.micro)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.effective % (self.micro * self.world):
            raise ValueError(
                f"train.effective_batch={self.effective} is not micro_batch={self.micro} x ranks={self.world} x an "
                f"integer; {self._what_would_work()}"
            )

    def _what_would_work(self) -> str:
        fitting = [m for m in range(1, self.effective + 1) if self.effective % (m * self.world) == 0]
        if fitting:
            return f"with {self.world} rank(s) train.micro_batch may be {', '.join(map(str, fitting))}"
        below = max(1, self.effective // self.world) * self.world
        return (
            f"{self.effective} does not divide by {self.world} ranks: "
            f"train.effective_batch={below} or {below + self.world} would"
        )

    @property
    def accumulation(self) -> int:
        return self.effective // (self.micro * self.world)


def micro_batches(sampler: BatchSampler, sizes: BatchSizes, rank: int, first_batch: int) -> Iterator[list[SampleKey]]:
    """Endless micro-batches of one rank, from the beginning of global batch `first_batch` on."""
    for number in itertools.count(first_batch):
        keys = sampler.batch(number, sizes.effective)
        for step in range(sizes.accumulation):
            start = (step * sizes.world + rank) * sizes.micro
            yield keys[start : start + sizes.micro]


@dataclass(frozen=True)
class LoadedBatch:
    """A micro-batch, the keys of its random draws, and how many unreadable samples were replaced, by reason."""

    batch: Batch
    keys: tuple[SampleKey, ...]
    skipped: Counter[str]

    def pin_memory(self) -> LoadedBatch:
        return LoadedBatch(self.batch.pin_memory(), self.keys, self.skipped)

    def draws(self, seed: int) -> Draws:
        return Draws(seed, tuple(k.epoch for k in self.keys), tuple(k.index for k in self.keys))


class UnreadableError(ValueError):
    """A sample and all its substitutes are unreadable. Only one rank raises this; other faults of input meet all."""


class _SampleReader(Dataset[tuple[SampleKey, Sample | str, Counter[str]]]):
    """Reads the sample of a key; an unreadable one is replaced by another, drawn for that key, and counted.

    The last error in one line where the substitutes cannot be read either: an exception would leave a worker wrapped in
    its own traceback.
    """

    def __init__(self, dataset: AnyWordDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> tuple[SampleKey, Sample | str, Counter[str]]:
        skipped: Counter[str] = Counter()
        last = ""
        for index in itertools.chain([key.index], self._substitutes(key)):
            try:
                return key, self.dataset.sample(index, key.epoch, key.size), skipped
            except SampleError as error:
                skipped[error.reason] += 1
                last = str(error)
        return key, last, skipped

    def _substitutes(self, key: SampleKey) -> Iterator[int]:
        n = len(self.dataset)
        rng = numpy_rng(self.dataset.seed, key.epoch, key.index, "substitute")
        yield from rng.choice(n, size=min(n, MAX_SUBSTITUTES), replace=False).tolist()


def _collate(rows: Sequence[tuple[SampleKey, Sample | str, Counter[str]]]) -> LoadedBatch | str:
    """The micro-batch, or why there is none."""
    skipped: Counter[str] = Counter()
    samples = []
    for key, sample, counts in rows:
        if isinstance(sample, str):
            return (
                f"data.sources: neither item {key.index} nor {counts.total() - 1} others in its place can be read "
                f"({dict(counts)}); check that data_root of the annotation file points to the images; {sample}"
            )
        samples.append(sample)
        skipped.update(counts)
    return LoadedBatch(collate(samples), tuple(key for key, _, _ in rows), skipped)


PREFETCH = 4
"""Micro-batches that each worker reads ahead."""


def limit_threads(_worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _start_worker(worker: int) -> None:
    limit_threads(worker)
    install_worker_signal_handlers()


def load_batches(
    dataset: AnyWordDataset, batches: Iterator[list[SampleKey]], workers: int, pin: bool
) -> Iterator[LoadedBatch]:
    """Reads the given micro-batches ahead in `workers` processes (0: in this one), in order.

    Raises UnreadableError where neither a sample nor its substitutes can be read.
    """
    for loaded in DataLoader(
        _SampleReader(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists will do
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
    ):
        if isinstance(loaded, str):
            raise UnreadableError(loaded)
        yield loaded
