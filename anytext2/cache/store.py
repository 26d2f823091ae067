"""An LMDB store of what is drawn once for each picture, and of what the frozen networks make of it.

One entry a record, found by the record's content (so that neither order nor filters matter): the picture's size and
`StoredRasters`; in stores with latents a second one with the posterior of the picture and the latent of the masked
picture; in stores with captions one more for each different caption, with its context in float16. A header
(anytext2/cache/header.py) says how all this was made; a store that was made otherwise is refused.

What is kept is only what does not change between epochs. Still drawn anew for every sample: font of the glyph page,
edge of the position, part and change of the font hint, colour told or not, selection of lines, phrases. With latents
the posterior's noise is still drawn; the edge of the hidden area in editing mode is not, and pictures with more lines
than a sample holds are never in editing mode.

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
from anytext2.data.features import CacheEntry, StoredLatents
from anytext2.data.geometry import Size
from anytext2.glyphs.rasters import StoredRasters

HEADER_KEY = b"header"
RASTERS_PREFIX, _LATENTS, CONTEXT_PREFIX = b"P", b"L", b"C"
_SIZE = struct.Struct("<II")  # height and width of the picture file; the packed parts follow
_CONTEXT = struct.Struct("<HHH")  # K, 77, D; the context follows, float16


def record_key(record: Record) -> bytes:
    """16 bytes that stand for what is drawn of a record: its picture's name, its lines' texts, languages and places."""
    digest = hashlib.blake2b(record.name.encode("utf-8", "surrogatepass"), digest_size=16)
    for line in record.lines:
        digest.update(f"\0{line.text}\0{line.language}\0".encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(line.polygon, np.float32).tobytes())
    return digest.digest()


def context_key(caption: str) -> bytes:
    """The key of a caption's context; depends on the caption alone."""
    return CONTEXT_PREFIX + hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class FeatureCache:
    """A finished store, read only. Every process opens it for itself, when it first reads."""

    def __init__(self, path: Path, header: CacheHeader) -> None:
        self.path, self.header = path.absolute(), header

    @classmethod
    def open(cls, path: Path, wanted: CacheHeader) -> FeatureCache:
        """Raises ValueError where there is no readable store, CacheMismatchError where it was made otherwise."""
        cache = cls(path, read_header(path))
        differences = cache.header.differences(wanted)
        if differences:
            raise CacheMismatchError(
                f"{path}: {'; '.join(differences)}; build it anew, or set data.cache_mismatch=online"
            )
        return cache

    def entry(self, record: Record, with_latents: bool = False) -> CacheEntry | None:
        """None for a record that could not be read when the store was built."""
        key = record_key(record)
        with _reader(self.path).begin(buffers=False) as transaction:
            content = transaction.get(RASTERS_PREFIX + key)
            latents = transaction.get(_LATENTS + key) if with_latents else None
        if content is None or (with_latents and latents is None):
            return None
        height, width = _SIZE.unpack_from(content, 0)
        parts = StoredRasters.unpack(content[_SIZE.size :])
        return CacheEntry((height, width), parts, None if latents is None else StoredLatents.unpack(latents))

    def at(self, size: Size) -> FeatureCache | None:
        """The store for pictures of a size (H, W): this one, or None."""
        return self if size == self.header.size else None

    def context(self, caption: str) -> np.ndarray | None:
        """float16 [K, 77, D] of an image caption; None for one that the store has not."""
        with _reader(self.path).begin(buffers=False) as transaction:
            content = transaction.get(context_key(caption))
        if content is None:
            return None
        return np.frombuffer(content, np.float16, offset=_CONTEXT.size).reshape(_CONTEXT.unpack_from(content, 0))

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file; None for a record that is not in the store."""
        with _reader(self.path).begin() as transaction:
            content = transaction.get(RASTERS_PREFIX + record_key(record))
        return None if content is None else _SIZE.unpack_from(content, 0)


@dataclass(frozen=True)
class FeatureCachesBySize:
    """Stores of the same pictures in several sizes."""

    caches: Mapping[Size, FeatureCache]

    def at(self, size: Size) -> FeatureCache | None:
        """The store for pictures of a size (H, W), or None."""
        return self.caches.get(size)

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file; None for a record that is in none of the stores."""
        return next((size for cache in self.caches.values() if (size := cache.file_size(record))), None)


def rasters_item(record: Record, size: Size, parts: bytes) -> tuple[bytes, bytes]:
    """Key and value of a record's parts, for the builder."""
    return RASTERS_PREFIX + record_key(record), _SIZE.pack(*size) + parts


def latents_item(record: Record, latents: StoredLatents) -> tuple[bytes, bytes]:
    """Key and value of a record's latents, for the builder."""
    return _LATENTS + record_key(record), latents.pack()


def context_item(caption: str, context: np.ndarray) -> tuple[bytes, bytes]:
    """Key and value of a caption's context [K, 77, D], for the builder."""
    packed = np.ascontiguousarray(context, np.float16).tobytes()
    return context_key(caption), _CONTEXT.pack(*context.shape) + packed


def read_header(path: Path) -> CacheHeader:
    """The header of a finished store. Raises ValueError where the file is none."""
    environment = _reader(path.absolute(), anew=True)
    size, needed = path.stat().st_size, (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        raise ValueError(f"{path}: truncated: {size} bytes of {needed}; build the feature cache anew")
    with environment.begin() as transaction:
        content = _guarded(path, lambda: transaction.get(HEADER_KEY))
    if content is None:
        raise ValueError(f"{path}: an LMDB store, but no finished feature cache")
    return CacheHeader.from_json(content, path)


_readers: dict[Path, tuple[tuple[int, int, int], lmdb.Environment]] = {}


def _reader(path: Path, anew: bool = False) -> lmdb.Environment:
    """The process's handle on a store: LMDB allows one for each file, and none that was opened before a fork.

    anew: look whether the file was replaced. Raises ValueError, in one line, where the file is no LMDB store.
    """
    if not anew and path in _readers and _readers[path][0][0] == os.getpid():
        return _readers[path][1]
    if not path.is_file():
        raise ValueError(f"{path}: there is no feature cache; launch/build_lmdb_cache.py makes one")
    found = path.stat()
    identity = (os.getpid(), found.st_ino, found.st_mtime_ns)
    if path in _readers:
        if _readers[path][0] == identity:
            return _readers[path][1]
        _readers.pop(path)[
            1
        ].close()  # of another process or of a file that was replaced; there is no lock file to hurt
    environment = _guarded(
        path,
        lambda: lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=4),
    )
    _readers[path] = (identity, environment)
    return environment


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except lmdb.Error as error:
        raise ValueError(f"{path}: not a readable LMDB store ({error}); build the feature cache anew") from error
