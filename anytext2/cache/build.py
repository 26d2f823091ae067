"""Builds a feature cache: worker processes draw, this process encodes and writes. An interrupted build is resumable.

Records are written to `<name>.partial` in committed chunks. The complete store gets its header and is then renamed, so
that a file with the final name is always complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import lmdb
import numpy as np
import torch

from anytext2.cache.encoders import EncodeCaptions, EncodeImages
from anytext2.cache.header import CacheHeader
from anytext2.cache.store import (
    CONTEXT_PREFIX,
    HEADER_KEY,
    RASTERS_PREFIX,
    context_item,
    context_key,
    latents_item,
    rasters_item,
    record_key,
)
from anytext2.core.files import fsync
from anytext2.data.captions import fixed_image_caption
from anytext2.data.dataset import AnyWordDataset, SampleError, load_image, resize_image
from anytext2.data.geometry import Size, fit_record
from anytext2.glyphs import render
from anytext2.glyphs.rasters import pack_rasters

_PENDING_HEADER_KEY = b"wanted header"  # of an unfinished store
_INITIAL_MAP_SIZE = 1 << 28  # bytes
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
_NEARLY_FULL = 1 << 16  # bytes: less than one record
_NO_STORE = (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError)
_GOES_ON = "what is done stays, and the same command goes on"


@dataclass(frozen=True)
class BuildReport:
    """stored: records in the store. added: how many of them this call added. captions: contexts in the store. bytes:
    size of the file. skipped: reason -> number of records."""

    stored: int
    added: int
    captions: int
    bytes: int
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _RenderedRecord:
    """One record's store item, and with latents its picture and masked picture (uint8 [H, W, 3]).

    A record that cannot be read has only an index and a reason.
    """

    index: int
    item: tuple[bytes, bytes] | None
    picture: np.ndarray | None
    masked: np.ndarray | None
    reason: str = ""


def build_cache(
    path: Path,
    dataset: AnyWordDataset,
    header: CacheHeader,
    workers: int,
    max_bytes: int | None = None,
    encode: EncodeImages | None = None,
    encode_captions: EncodeCaptions | None = None,
    chunk: int = 64,
    progress: Callable[[int], object] = lambda n: None,
) -> BuildReport:
    """Builds the store at `path`, or resumes an interrupted build with the same header.

    Args:
        workers: number of processes that draw; 0: this process.
        max_bytes: greatest size of the store; None: the free space of the disk.
        encode, encode_captions: make latents and contexts; None for a store without them.
        chunk: number of records that are committed together.
        progress: called with the number of records of each finished chunk.
    Raises:
        ValueError: another process builds the same store, it does not fit, or the disk or LMDB refuses it. What is done
            stays in `<name>.partial`.
    """
    partial_path = path.with_name(path.name + ".partial")
    with _storage_errors(partial_path), _exclusive_lock(partial_path):
        max_bytes = max_bytes or shutil.disk_usage(path.parent).free
        with _open_partial(partial_path, header, max_bytes) as environment:
            store = _StoreWriter(environment, partial_path, max_bytes)
            todo = store.missing_records(dataset)
            progress(len(dataset) - len(todo))
            skipped: Counter[str] = Counter()
            render_one = partial(_render_record, dataset, header.size, encode is not None)
            with _pool(workers) as map_records:
                for rendered in _chunks(map_records(render_one, todo), chunk):
                    skipped.update(one.reason for one in rendered if one.item is None)
                    items = _items(rendered, dataset, encode)
                    if encode_captions is not None:
                        captions = store.missing_captions(_fixed_captions(rendered, dataset))
                        items += map(context_item, captions, encode_captions(captions) if captions else [])
                    store.put(items)
                    progress(len(rendered))
            store.finish(header)
            stored, captions_stored = store.count(RASTERS_PREFIX), store.count(CONTEXT_PREFIX)
        os.replace(partial_path, path)
        fsync(path.parent)
    return BuildReport(stored, len(todo) - skipped.total(), captions_stored, path.stat().st_size, skipped)


def estimate_cache_bytes(
    dataset: AnyWordDataset,
    size: Size,
    latent_bytes: int = 0,
    caption_bytes: Callable[[str], int] | None = None,
    probes: int = 32,
) -> int:
    """Estimated size in bytes of the store for pictures of size (H, W), from a few records spread over the dataset.

    latent_bytes: size of one record's latents. caption_bytes: size of a caption's context; all captions are taken to be
    distinct. probes: number of records that are drawn.
    """
    if not len(dataset):
        return 0
    indices = sorted({round(i * (len(dataset) - 1) / max(1, probes - 1)) for i in range(probes)})
    rendered = [_render_record(dataset, size, False, index) for index in indices]
    sizes = [len(one.item[1]) for one in rendered if one.item is not None]
    contexts = 0.0
    if caption_bytes is not None and sizes:
        contexts = sum(map(caption_bytes, _fixed_captions(rendered, dataset))) / len(sizes)
    # LMDB's pages are about three quarters full; two keys of 17 bytes a record.
    return round(len(dataset) * (float(np.mean(sizes or [0])) + latent_bytes + contexts + 64) / 0.75)


class _StoreWriter:
    """Writes to an unfinished store; there is one writer at a time."""

    def __init__(self, environment: lmdb.Environment, path: Path, max_bytes: int) -> None:
        self._environment, self._path, self._max_bytes = environment, path, max_bytes

    def missing_records(self, dataset: AnyWordDataset) -> list[int]:
        """Indices of the records that are not in the store; of records with equal content, the first one."""
        seen: set[bytes] = set()
        todo = []
        with self._environment.begin() as transaction:
            for index in range(len(dataset)):
                key = record_key(dataset.record(index))
                if key not in seen and transaction.get(RASTERS_PREFIX + key) is None:
                    todo.append(index)
                seen.add(key)
        return todo

    def put(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Writes all items (key, value) in one transaction. The map grows when it is full, up to max_bytes."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                size = self._environment.info()["map_size"]
                if size >= self._max_bytes:
                    raise ValueError(
                        f"{self._path}: the store needs more than {self._max_bytes / 2**30:.2f} GiB; "
                        f"give it more with --map-size, or free disk space; {_GOES_ON}"
                    ) from None
                self._environment.set_mapsize(min(2 * size, self._max_bytes))

    def missing_captions(self, captions: Iterable[str]) -> list[str]:
        """The distinct captions whose contexts are not in the store."""
        with self._environment.begin() as transaction:
            return [caption for caption in dict.fromkeys(captions) if transaction.get(context_key(caption)) is None]

    def finish(self, header: CacheHeader) -> None:
        """Writes the header, which marks the store as complete, and flushes everything to the disk."""
        with self._environment.begin(write=True) as transaction:
            transaction.delete(_PENDING_HEADER_KEY)
            transaction.put(HEADER_KEY, header.to_json())
        self._environment.sync(True)

    def count(self, prefix: bytes) -> int:
        """Number of entries whose key starts with `prefix`."""
        with self._environment.begin() as transaction:
            return sum(key.startswith(prefix) for key in transaction.cursor().iternext(values=False))


def _open_partial(path: Path, header: CacheHeader, max_bytes: int) -> lmdb.Environment:
    """The unfinished store at `path` if it has the same header, else a new one."""
    for _ in range(2):
        try:
            size = max(min(_INITIAL_MAP_SIZE, max_bytes), path.stat().st_size if path.exists() else 0)
            environment = lmdb.open(str(path), subdir=False, lock=False, map_size=size)
            with environment.begin(write=True) as transaction:
                if transaction.stat()["entries"] == 0:
                    transaction.put(_PENDING_HEADER_KEY, header.to_json())
                if transaction.get(_PENDING_HEADER_KEY) == header.to_json():
                    return environment
            environment.close()
        except _NO_STORE:
            pass  # not an LMDB file, or one that a power failure corrupted: start again
        path.write_bytes(b"")
    raise ValueError(f"{path}: cannot be written as an LMDB store")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns LMDB's and the system's errors into a ValueError of one line: the cause, and what to do."""
    try:
        yield
    except _NO_STORE as error:
        raise ValueError(
            f"{path}: damaged ({_one_line(error)}); remove it, and the same command begins anew"
        ) from error
    except (lmdb.Error, OSError) as error:
        raise ValueError(f"{path}: {_cause(path, _one_line(error))}; {_GOES_ON}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _cause(path: Path, said: str) -> str:
    """Why the store at `path` cannot be written, and what to do. LMDB calls a write that was cut short an I/O error."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    size = path.stat().st_size if path.exists() else 0
    if os.strerror(errno.EFBIG) in said or (limit != resource.RLIM_INFINITY and size + _NEARLY_FULL > limit):
        return "a limit on the size of files is reached; raise it (`ulimit -f`), or build on another disk"
    if os.strerror(errno.EDQUOT) in said:
        return "the disk quota is used up; free some of it, or build on another disk"
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if os.strerror(errno.ENOSPC) in said or shutil.disk_usage(folder).free < _NEARLY_FULL:
        return "the disk is full; free disk space, or build on another disk"
    return f"cannot be written ({said}); check the disk and its permissions, or build in another place"


def _render_record(dataset: AnyWordDataset, size: Size, with_picture: bool, index: int) -> _RenderedRecord:
    """Draws one record for a picture of size (H, W)."""
    record = dataset.record(index)
    try:
        pixels = load_image(record, dataset.config.exif)
    except SampleError as error:
        return _RenderedRecord(index, None, None, None, error.reason)
    file_size, pixels = pixels.shape[:2], resize_image(pixels, size)
    scaled = fit_record(record, file_size, size)
    item = rasters_item(record, file_size, pack_rasters(dataset.line_rasters(scaled, pixels)))
    if not with_picture:
        return _RenderedRecord(index, item, None, None)
    masked = pixels.copy()
    masked[render.fill_polygons([line.polygon for line in scaled.lines], size) > 0] = 0
    return _RenderedRecord(index, item, pixels, masked)


def _items(
    rendered: Sequence[_RenderedRecord], dataset: AnyWordDataset, encode: EncodeImages | None
) -> list[tuple[bytes, bytes]]:
    """Store items (key, value) of a chunk: rasters, and with `encode` latents."""
    readable = [one for one in rendered if one.item is not None]
    items = [one.item for one in readable if one.item is not None]
    if encode is not None and readable:
        pictures = np.stack([one.picture for one in readable if one.picture is not None])
        masked = np.stack([one.masked for one in readable if one.masked is not None])
        for one, latents in zip(readable, encode(pictures, masked), strict=True):
            items.append(latents_item(dataset.record(one.index), latents))
    return items


def _fixed_captions(rendered: Sequence[_RenderedRecord], dataset: AnyWordDataset) -> Iterator[str]:
    """The image captions of a chunk that are the same in every epoch."""
    for one in rendered:
        if one.item is not None:
            caption = fixed_image_caption(dataset.record(one.index).caption, dataset.config.max_caption_words)
            if caption is not None:
                yield caption


def _chunks(rendered: Iterator[_RenderedRecord], size: int) -> Iterator[list[_RenderedRecord]]:
    """Lists of `size` records; the last one may be shorter."""
    while chunk := list(islice(rendered, size)):
        yield chunk


_MapRecords = Callable[[Callable[[int], _RenderedRecord], Sequence[int]], Iterator[_RenderedRecord]]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[_MapRecords]:
    """A `map` function over worker processes; with `workers` = 0 the built-in one."""
    if workers < 1:
        yield map  # type: ignore[misc]
        return
    with get_context("fork").Pool(workers, initializer=_init_worker, initargs=(os.getpid(),)) as pool:
        yield lambda render_one, todo: pool.imap(render_one, todo, chunksize=8)


def _init_worker(parent: int) -> None:
    """Limits a worker to one thread, and lets the kernel kill it if its parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


@contextlib.contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Holds `<path>.lock`. Raises ValueError if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{path}: another process is building this feature cache") from error
        try:
            yield
        finally:
            Path(file.name).unlink(missing_ok=True)
