"""What a run needs beside the GPUs: the feature cache's room and time, and the host's memory."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from anytext2.cache.build import estimate_cache_bytes
from anytext2.data.geometry import Size
from anytext2.model.anytext2 import AnyText2Config
from anytext2.model.text_encoder import CONTEXT_LENGTH
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.schema import Recipe
from distill.data.loader import PREFETCH, LoadedBatch
from distill.inference.loading import load_dataset
from distill.planning.zeros import batch_of_zeros

PROBES, LEAST_SIZE = 6, 96
"""Pictures that are drawn to measure what a cache holds, and the least pixels of one."""
TRAINER, LOADER = round(0.85 * 2**30), round(0.65 * 2**30)
"""Resident bytes of the processes of a rank and of a loader, without weights and batches: measured on a CPU over 10,000
updates."""


@dataclass(frozen=True)
class CacheCost:
    """Of one picture: bytes in the store for its drawings, its latents and its caption's context; processor seconds to
    draw, FLOPs to encode its two pictures."""

    drawings: float
    latents: int
    context: int
    draw_seconds: float
    encode_flops: int

    @property
    def total(self) -> float:
        return self.drawings + self.latents + self.context


@dataclass(frozen=True)
class HostMemory:
    """Bytes on one machine. weights: the float32 model that each rank makes before it goes to the GPU."""

    weights: int
    ranks: int
    loaders: int
    batches: int

    @property
    def total(self) -> int:
        return self.weights + self.ranks + self.loaders + self.batches


def cache_cost(recipe: Recipe, config: AnyText2Config, size: Size, encode_flops: int) -> CacheCost:
    """Measured on a few drawn pictures; what is drawn for photographs of three lines is about as much."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, PROBES, SyntheticConfig(size=max(LEAST_SIZE, *size)), seed=0)
        dataset, _ = load_dataset([folder / "data.json"], recipe)
        began = time.process_time()
        drawings = estimate_cache_bytes(dataset, size, probes=PROBES) / PROBES
        seconds = (time.process_time() - began) / PROBES
    step, channels = config.vae.downsampling, config.vae.z_channels
    latents = 6 * channels * (size[0] // step) * (size[1] // step)  # mean, deviation, masked picture in fp16
    context = 2 * CONTEXT_LENGTH * config.text_encoder.width
    return CacheCost(drawings, round(latents / 0.75), round(context / 0.75), seconds, encode_flops)


def host_memory(recipe: Recipe, config: AnyText2Config, size: Size, parameters: int, ranks: int) -> HostMemory:
    """Of a machine with so many ranks. parameters: of the whole model."""
    loaded = batch_of_zeros(recipe, config, size, recipe.train.micro_batch)
    ahead = PREFETCH * recipe.data.workers if recipe.data.workers else 1
    return HostMemory(
        weights=4 * parameters * ranks,
        ranks=TRAINER * ranks,
        loaders=LOADER * recipe.data.workers * ranks,
        batches=batch_bytes(loaded) * ahead * ranks,
    )


def batch_bytes(loaded: LoadedBatch) -> int:
    """Of the tensors of a micro-batch as the loader hands it over."""
    values = (getattr(loaded.batch, field.name) for field in fields(loaded.batch))
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
