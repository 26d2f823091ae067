"""A feature cache in several stores: parts that different machines build, and stores of different annotation files.

The stores lie in one folder. Which part of N holds a record is a function of the record's key, so a reader opens the
right one, and records of equal content are drawn once.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anytext2.cache.header import CacheHeader, CacheMismatchError
from anytext2.cache.store import FeatureCache, read_header, record_key
from anytext2.core.batch import Record
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.features import CacheEntry
from anytext2.data.geometry import Size

STORES = "*.lmdb"
"""The stores of a folder. An unfinished one has another ending."""


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count` of the records."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The part from 'K/N'. Raises ValueError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise ValueError(f"--shard {text}: write K/N with K from 1 to N, as in 2/8 for the second of eight parts")
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, path: Path) -> Path:
        """The file of this part: 'features-2of8.lmdb' for features.lmdb."""
        return path.with_name(f"{path.stem}-{self.number}of{self.count}{path.suffix}")

    def holds(self, key: bytes) -> bool:
        """Whether this part has the record of this key."""
        return _number(key, self.count) == self.number

    def indices(self, dataset: AnyWordDataset) -> np.ndarray:
        """Indices int64 of the data set's records that this part has, ascending."""
        held = (self.holds(record_key(dataset.record(index))) for index in range(len(dataset)))
        return np.flatnonzero(np.fromiter(held, np.bool_, len(dataset)))


def _number(key: bytes, count: int) -> int:
    """The part of `count`, from 1, that has the record of this key."""
    return 1 + int.from_bytes(key[:8], "little") % count


@dataclass(frozen=True)
class JoinedCaches:
    """Stores for pictures of one size as one. groups: the N parts of each data set, in order."""

    size: Size
    groups: Sequence[Sequence[FeatureCache]]

    def entry(self, record: Record, with_latents: bool = False) -> CacheEntry | None:
        """The features of a record; None if no store has it, or its latents are not there although `with_latents`."""
        key = record_key(record)
        found = (parts[_number(key, len(parts)) - 1].entry_of(key, with_latents) for parts in self.groups)
        return next((entry for entry in found if entry is not None), None)

    def for_size(self, size: Size) -> JoinedCaches | None:
        """These stores if their pictures have size (H, W), else None."""
        return self if size == self.size else None

    def context(self, caption: str) -> np.ndarray | None:
        """The context float16 [K, 77, D] of an image caption; None if it is in no store."""
        found = (part.context(caption) for parts in self.groups for part in parts)
        return next((context for context in found if context is not None), None)

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file in pixels; None for a record that is in no store."""
        entry = self.entry(record)
        return None if entry is None else entry.file_size


def open_folder(folder: Path, wanted: CacheHeader) -> JoinedCaches:
    """The stores in a folder that serve a run which wants this header; stores of other files or sizes are passed over.

    Raises ValueError for a folder without stores and for one that cannot be read, CacheMismatchError for stores of
    other settings, or where an annotation file has no store, or not all parts of one.
    """
    groups = _groups(folder, wanted)
    complete = {group: parts for group, parts in groups.items() if len(parts) == group[1]}
    missing = {hash_: name for name, hash_ in wanted.sources.items()}
    for sources, _ in complete:
        for hash_ in sources:
            missing.pop(hash_, None)
    for hash_, name in missing.items():
        for (sources, count), parts in groups.items():
            if hash_ in sources:
                lacking = ", ".join(str(Shard(n, count)) for n in range(1, count + 1) if n not in parts)
                raise CacheMismatchError(
                    f"{folder}: of {name}, these parts are not there: {lacking}; build them with --shard"
                )
        raise CacheMismatchError(f"{folder}: no store of {name} in {wanted.resolution} px; build one into this folder")
    ordered = [[parts[n] for n in range(1, count + 1)] for (_, count), parts in complete.items()]
    return JoinedCaches(wanted.size, ordered)


_Group = tuple[tuple[str, ...], int]
"""What belongs together: hashes of the annotation files, and the number of parts."""


def _groups(folder: Path, wanted: CacheHeader) -> dict[_Group, dict[int, FeatureCache]]:
    """The stores of the wanted size that hold one of the wanted files, by group and number of the part."""
    paths = sorted(folder.glob(STORES))
    if not paths:
        raise ValueError(f"{folder}: holds no feature cache ({STORES}); launch/build_lmdb_cache.py makes one")
    groups: dict[_Group, dict[int, FeatureCache]] = defaultdict(dict)
    for path in paths:
        header = read_header(path)
        if header.resolution != wanted.resolution or not {*header.sources.values()} & {*wanted.sources.values()}:
            continue
        cache = FeatureCache.open(path, replace(wanted, sources=header.sources, shard=header.shard))
        shard = Shard.parse(header.shard) if header.shard else Shard()
        groups[tuple(sorted(header.sources.values())), shard.count][shard.number] = cache
    return groups
