"""The recipe's data section applied to a dataset: split, source weights and size buckets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from anytext2.data.dataset import AnyWordDataset
from anytext2.data.geometry import Size
from anytext2.data.image_file import read_header
from anytext2.data.image_lookup import find_image
from anytext2.data.records import Records
from distill.config.schema import DataConfig
from distill.data.batch_sampler import (
    BatchSampler,
    Bucket,
    BucketBatchSampler,
    ShuffledBatchSampler,
    WeightedIndices,
    nearest_aspect_ratio,
)

PARTS = ("train", "val", "test")
_READERS = 16  # reading the beginning of a file is waiting for the disk


def split_indices(records: Records, split: Sequence[float], part: str) -> np.ndarray:
    """Indices int64 of the records of one part (`all`: of every one), ascending.

    The part of a picture depends on its name alone, so that it stays when data is added, moved or reordered.
    """
    if part == "all":
        return np.arange(len(records))
    places = np.fromiter((_place(records.name(i)) for i in range(len(records))), np.float64, len(records))
    edges = np.cumsum([0.0, *split])
    number = PARTS.index(part)
    upper = edges[number + 1] if number + 1 < len(PARTS) else np.inf
    return np.flatnonzero((places >= edges[number]) & (places < upper))


def _place(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "little") / 2**56


def make_batch_sampler(dataset: AnyWordDataset, data: DataConfig, seed: int) -> BatchSampler:
    """The order in which a run sees the dataset.

    Raises ValueError where the part is empty, or there are not as many weights as sources.
    """
    assert isinstance(dataset.records, Records), "a run's records know their names and sources"
    chosen = split_indices(dataset.records, data.split, data.part)
    if not len(dataset):
        raise ValueError("data.sources: no picture that can be used; launch/check_dataset.py says why")
    if not len(chosen):
        raise ValueError(f"data.part={data.part}: none of the {len(dataset)} pictures is in it; use data.part=all")
    sources = dataset.records.sources
    weights = source_weights(data, 1 + int(sources.max(initial=0)))
    shapes = bucket_shapes(data.buckets)
    if not shapes:
        return ShuffledBatchSampler(_groups(chosen, sources, weights), seed)
    ratios = list(shapes)
    nearest = _nearest_ratios(dataset, chosen, ratios)
    buckets = []
    for number, ratio in enumerate(ratios):
        groups = _groups(chosen[nearest == number], sources, weights)
        if sum(group.length for group in groups):
            buckets.append(Bucket(ShuffledBatchSampler(groups, seed), shapes[ratio]))
    if not buckets:
        raise ValueError("data.sources: no usable sample is left; all that remain are in sources of weight 0")
    return BucketBatchSampler(buckets, seed)


def records_by_size(dataset: AnyWordDataset, data: DataConfig) -> dict[Size, np.ndarray]:
    """The sizes (H, W) in which a run shows pictures, and which records it shows in each: indices int64, ascending."""
    chosen, shapes = np.arange(len(dataset)), bucket_shapes(data.buckets)
    if not shapes:
        return dict.fromkeys(image_sizes(data), chosen)
    nearest = _nearest_ratios(dataset, chosen, list(shapes))
    return {size: chosen[nearest == number] for number, sizes in enumerate(shapes.values()) for size in sizes}


def image_sizes(data: DataConfig) -> list[Size]:
    """The sizes (H, W) in which a run may show pictures."""
    sizes = [size for same_shape in bucket_shapes(data.buckets).values() for size in same_shape]
    return sizes or [(data.options.resolution, data.options.resolution)]


def source_weights(data: DataConfig, n_sources: int) -> list[float]:
    if not data.weights:
        return [1.0] * n_sources
    if len(data.weights) != max(n_sources, len(data.sources)):
        raise ValueError(f"data.weights has {len(data.weights)} numbers for {len(data.sources)} data.sources")
    return list(data.weights)


def bucket_shapes(buckets: Sequence[str]) -> dict[float, tuple[Size, ...]]:
    """Ratio of width to height -> the sizes (H, W) of that shape, from 'WIDTHxHEIGHT' or 'SIDE'."""
    shapes: dict[float, tuple[Size, ...]] = {}
    for bucket in buckets:
        width, height = parse_bucket(bucket)
        shapes[width / height] = (*shapes.get(width / height, ()), (height, width))
    return shapes


def parse_bucket(bucket: str) -> tuple[int, int]:
    """Width and height. Raises ValueError where they are none, or no multiples of 64."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", bucket)
    if not found:
        raise ValueError(f"data.buckets: '{bucket}' is no size; write 512 or 768x512 (width x height)")
    width, height = int(found[1]), int(found[2] or found[1])
    if min(width, height) < 64 or width % 64 or height % 64:
        raise ValueError(f"data.buckets: {bucket}: sides must be multiples of 64")
    return width, height


def _groups(chosen: np.ndarray, sources: np.ndarray, weights: Sequence[float]) -> list[WeightedIndices]:
    return [WeightedIndices(chosen[sources[chosen] == number], weight) for number, weight in enumerate(weights)]


def _nearest_ratios(dataset: AnyWordDataset, chosen: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """The index of the nearest aspect ratio for each chosen record; of one ratio, without opening a picture."""
    if len(ratios) == 1:
        return np.zeros(len(chosen), np.int64)
    with ThreadPoolExecutor(_READERS) as readers:
        sizes = readers.map(lambda index: _cached_size(dataset, int(index)), chosen)
        return np.array([nearest_aspect_ratio(size, ratios) for size in sizes])


def _cached_size(dataset: AnyWordDataset, index: int) -> Size:
    """(H, W) of the picture file; a square where it cannot be read, which is counted when the sample is."""
    record = dataset.record(index)
    cached = dataset.cache.file_size(record) if dataset.cache is not None else None
    if cached is not None:
        return cached
    found = find_image(record)
    header = None if found is None else read_header(found.path)
    return (1, 1) if header is None else header.size(dataset.config.exif)
