"""Micro-batches on their way from the loader to the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from anytext2.core.batch import Contexts
from anytext2.data.dataset import AnyWordDataset
from distill.data.batch_sampler import BatchSampler
from distill.data.latents import LatentSource
from distill.data.loader import BatchSizes, LoadedBatch, load_batches, micro_batches
from distill.losses.step_input import StepInput
from distill.runtime.world import World


class MicroBatches:
    """This rank's micro-batches of a run, from any global batch on."""

    def __init__(
        self, dataset: AnyWordDataset, sampler: BatchSampler, plan: BatchSizes, world: World, workers: int
    ) -> None:
        self.dataset, self._sampler, self._plan, self._world, self._workers = dataset, sampler, plan, world, workers

    def starting_at(self, batch: int) -> Iterator[LoadedBatch]:
        """Endless micro-batches from global batch `batch` on, read ahead by the workers."""
        keys = micro_batches(self._sampler, self._plan, self._world.rank, batch)
        return load_batches(self.dataset, keys, self._workers, self._world.device.type == "cuda")

    def first_of(self, batch: int, dataset: AnyWordDataset | None = None) -> LoadedBatch:
        """The first micro-batch of a global batch, read in this process; dataset: by default the run's own."""
        keys = next(micro_batches(self._sampler, self._plan, self._world.rank, batch))
        return next(load_batches(dataset or self.dataset, iter([keys]), 0, False))


class StepInputs:
    """Puts a micro-batch on the device, with its latents where the objective needs them."""

    def __init__(
        self,
        seed: int,
        device: torch.device,
        latents: LatentSource | None,
        negative: Callable[[], Contexts | None] = lambda: None,
    ) -> None:
        """latents: None for an objective that needs none. negative: see `StepInput`; called once."""
        self._seed, self._device, self._latents = seed, device, latents
        self._negative = cache(negative)

    def __call__(self, loaded: LoadedBatch, updates: int) -> StepInput:
        """updates: finished optimizer updates."""
        batch = loaded.batch.to(self._device, non_blocking=True).normalized()
        draws = loaded.draws(self._seed)
        if self._latents is None:
            return StepInput(batch, draws, update=updates)
        with torch.no_grad():
            latent, masked, negative = self._latents(batch, draws), self._latents.masked(batch), self._negative()
        return StepInput(batch, draws, latent, masked, updates, negative)


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode: two calls with the same input agree. Afterwards the module is in its mode from before."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)
