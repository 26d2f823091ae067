"""The feature cache: an LMDB store of drawn rasters, latents and caption contexts.

A store has one entry for each record: the size of the picture file and `StoredRasters`. With latents it has a second
one: the posterior of the picture and the latent of the masked picture. With captions it has one more for each distinct
caption: its context in float16. Records are found by a hash of their content, so that order and filters do not matter.
The header (anytext2/cache/header.py) holds the settings of the build. A store with other settings is refused.

Only values that are the same in every epoch are stored. Every sample still has its own random font of the glyph page,
edge of the position mask, part and transform of the font hint, choice of colours, selection of lines and phrase, and
its own noise of the posterior. The stored masked latents have two limits in editing mode: the edge of the mask is not
random, and pictures with more lines than max_lines are never edited.

Shape legend: z latent channels, h/w latent cells.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from anytext2.cache.header import CacheHeader, CacheMismatchError
from anytext2.core.batch import Record
from anytext2.data.features import CacheEntry, FeatureSource, SizedFeatures, StoredLatents
from anytext2.data.geometry import Size
from anytext2.glyphs.rasters import StoredRasters

HEADER_KEY = b"header"
RASTERS_PREFIX, _LATENTS_PREFIX, CONTEXT_PREFIX = b"P", b"L", b"C"
_SIZE = struct.Struct("<II")  # height and width of the picture file; the packed rasters follow
_CONTEXT = struct.Struct("<HHH")  # K, 77, D; the context follows, float16


def record_key(record: Record) -> bytes:
    """16 bytes: BLAKE2b of the picture's name and the lines' texts, languages and polygons."""
    digest = hashlib.blake2b(record.name.encode("utf-8", "surrogatepass"), digest_size=16)
    for line in record.lines:
        digest.update(f"\0{line.text}\0{line.language}\0".encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(line.polygon, np.float32).tobytes())
    return digest.digest()


def context_key(caption: str) -> bytes:
    """The key of a caption's context: prefix and BLAKE2b of the caption."""
    return CONTEXT_PREFIX + hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class FeatureCache:
    """A finished store, read-only. Every process opens it for itself at the first read."""

    def __init__(self, path: Path, header: CacheHeader) -> None:
        self.path, self.header = path.absolute(), header

    @classmethod
    def open(cls, path: Path, wanted: CacheHeader) -> FeatureCache:
        """Opens a store. Raises ValueError if it cannot be read, CacheMismatchError if it was not built as `wanted`."""
        cache = cls(path, read_header(path))
        differences = cache.header.differences(wanted)
        if differences:
            raise CacheMismatchError(
                f"{path}: {'; '.join(differences)}; build it anew, or draw online with data.cache_mismatch=online"
            )
        return cache

    def entry(self, record: Record, with_latents: bool = False) -> CacheEntry | None:
        """The features of a record; None if it is not in the store, or its latents are not although `with_latents`."""
        return self.entry_of(record_key(record), with_latents)

    def entry_of(self, key: bytes, with_latents: bool = False) -> CacheEntry | None:
        """The same by the record's key."""
        content = _read(self.path, RASTERS_PREFIX + key)
        latents = _read(self.path, _LATENTS_PREFIX + key) if with_latents else None
        if content is None or (with_latents and latents is None):
            return None
        height, width = _SIZE.unpack_from(content, 0)
        rasters = StoredRasters.unpack(content[_SIZE.size :], self.header.like_reference)
        return CacheEntry((height, width), rasters, None if latents is None else StoredLatents.unpack(latents))

    def for_size(self, size: Size) -> FeatureCache | None:
        """This store if its pictures have size (H, W), else None."""
        return self if size == self.header.size else None

    def context(self, caption: str) -> np.ndarray | None:
        """The context float16 [K, 77, D] of an image caption; None if it is not in the store."""
        content = _read(self.path, context_key(caption))
        if content is None:
            return None
        return np.frombuffer(content, np.float16, offset=_CONTEXT.size).reshape(_CONTEXT.unpack_from(content, 0))

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file in pixels; None for a record that is not in the store."""
        content = _read(self.path, RASTERS_PREFIX + record_key(record))
        return None if content is None else _SIZE.unpack_from(content, 0)


@dataclass(frozen=True)
class FeatureCachesBySize:
    """Stores of the same pictures in several sizes (H, W). caches: for each size a `FeatureCache` or `JoinedCaches`."""

    caches: Mapping[Size, FeatureSource]

    def for_size(self, size: Size) -> SizedFeatures | None:
        """The store for pictures of size (H, W), or None."""
        cache = self.caches.get(size)
        return None if cache is None else cache.for_size(size)

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file in pixels; None for a record that is in none of the stores."""
        return next((size for cache in self.caches.values() if (size := cache.file_size(record))), None)


def rasters_item(record: Record, file_size: Size, rasters: bytes) -> tuple[bytes, bytes]:
    """Key and value of a record's packed rasters. file_size: height and width of the picture file."""
    return RASTERS_PREFIX + record_key(record), _SIZE.pack(*file_size) + rasters


def latents_item(record: Record, latents: StoredLatents) -> tuple[bytes, bytes]:
    """Key and value of a record's latents."""
    return _LATENTS_PREFIX + record_key(record), latents.pack()


def context_item(caption: str, context: np.ndarray) -> tuple[bytes, bytes]:
    """Key and value of a caption's context [K, 77, D]."""
    packed = np.ascontiguousarray(context, np.float16).tobytes()
    return context_key(caption), _CONTEXT.pack(*context.shape) + packed


def read_header(path: Path) -> CacheHeader:
    """The header of a store. Raises ValueError if the file is not a finished store."""
    environment = _environment(path.absolute(), check_replaced=True)
    size, needed = path.stat().st_size, (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        raise ValueError(f"{path}: truncated: {size} bytes of {needed}; build the feature cache anew")
    content = _read(path.absolute(), HEADER_KEY)
    if content is None:
        raise ValueError(f"{path}: an LMDB store, but no finished feature cache")
    return CacheHeader.from_json(content, path)


_environments: dict[Path, tuple[tuple[int, int, int], lmdb.Environment]] = {}


def _environment(path: Path, check_replaced: bool = False) -> lmdb.Environment:
    """This process's LMDB environment of a file. LMDB allows one for each file, and none from before a fork.

    check_replaced: open the file again if it was replaced. Raises ValueError if it is not an LMDB store.
    """
    if not check_replaced and path in _environments and _environments[path][0][0] == os.getpid():
        return _environments[path][1]
    if not path.is_file():
        raise ValueError(f"{path}: there is no feature cache; launch/build_lmdb_cache.py makes one")
    status = path.stat()
    identity = (os.getpid(), status.st_ino, status.st_mtime_ns)
    if path in _environments:
        if _environments[path][0] == identity:
            return _environments[path][1]
        # Another process's, or that of a replaced file. Closing it is safe, because there is no lock file.
        _, stale = _environments.pop(path)
        stale.close()
    environment = _translate_errors(
        path,
        lambda: lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=4),
    )
    _environments[path] = (identity, environment)
    return environment


def _read(path: Path, key: bytes) -> bytes | None:
    """The value of a key. Raises ValueError if the store cannot be read."""

    def get() -> bytes | None:
        with _environment(path).begin() as transaction:
            return transaction.get(key)

    content: bytes | None = _translate_errors(path, get)
    return content


def _translate_errors(path: Path, read: Callable[[], Any]) -> Any:
    """`read()`, with a ValueError in place of LMDB's errors."""
    try:
        return read()
    except lmdb.Error as error:
        raise ValueError(f"{path}: not a readable LMDB store ({error}); build the feature cache anew") from error
