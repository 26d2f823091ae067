"""Building the feature cache: several processes draw, this one writes; a killed build goes on where it was.

Everything goes into `<name>.partial` in committed chunks. Only a complete store gets its header and then, in one
step, its name; who opens the name finds all or nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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

_WANTED = b"wanted header"
_FIRST_MAP = 1 << 28
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class BuildReport:
    """stored: records in the store; drawn: of these, how many this call added; captions: contexts in the store;
    skipped: reason -> how many records."""

    stored: int
    drawn: int
    captions: int
    bytes: int
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Drawn:
    """One record's entry, and the pictures that latents are made of; or why there is none."""

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
    """Makes the store, or the rest of it.

    workers: processes that draw (0: this one). max_bytes: how large the store may grow (None: what the disk has).
    progress: called with the number of records of each finished chunk.
    Raises ValueError where another process builds the same store, or where it does not fit.
    """
    partial_path = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(partial_path):
        max_bytes = max_bytes or shutil.disk_usage(path.parent).free
        environment = _begin(partial_path, header, max_bytes)
        store = _Store(environment, partial_path, max_bytes)
        todo = store.missing(dataset)
        progress(len(dataset) - len(todo))
        skipped: Counter[str] = Counter()
        draw = partial(_draw, dataset, header.size, encode is not None)
        with _pool(workers) as mapped:
            for number, drawn in _chunks(mapped(draw, todo), chunk):
                skipped.update(one.reason for one in drawn if one.item is None)
                items = _items(drawn, dataset, encode)
                if encode_captions is not None:
                    captions = store.without_context(_fixed_captions(drawn, dataset))
                    items += map(context_item, captions, encode_captions(captions) if captions else [])
                store.put(items)
                progress(number)
        store.finish(header)
        stored, captions_stored = store.count(RASTERS_PREFIX), store.count(CONTEXT_PREFIX)
        environment.close()
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
    """Size of the store for pictures of `size`, from a few records spread over the dataset.

    latent_bytes: of one record's latents; caption_bytes: of a caption's context. Every caption counts as another one.
    """
    if not len(dataset):
        return 0
    places = sorted({round(i * (len(dataset) - 1) / max(1, probes - 1)) for i in range(probes)})
    drawn = [one for one in (_draw(dataset, size, False, index) for index in places) if one.item is not None]
    sizes = [len(one.item[1]) for one in drawn if one.item is not None]
    contexts = 0.0
    if caption_bytes is not None and drawn:
        contexts = sum(map(caption_bytes, _fixed_captions(drawn, dataset))) / len(drawn)
    # A tree of pages that are three quarters full, and two keys of 17 bytes a record.
    return round(len(dataset) * (float(np.mean(sizes or [0])) + latent_bytes + contexts + 64) / 0.75)


class _Store:
    """The growing store; the only writer."""

    def __init__(self, environment: lmdb.Environment, path: Path, max_bytes: int) -> None:
        self._environment, self._path, self._most = environment, path, max_bytes

    def missing(self, dataset: AnyWordDataset) -> list[int]:
        """The records that are not there yet, each content once."""
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
        """All or none of them."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                size = self._environment.info()["map_size"]
                if size >= self._most:
                    raise ValueError(
                        f"{self._path}: the store needs more than {self._most / 2**30:.2f} GiB; "
                        "give it more with --map-size, or free disk space"
                    ) from None
                self._environment.set_mapsize(min(2 * size, self._most))

    def without_context(self, captions: Iterable[str]) -> list[str]:
        """The captions, each once, of which the store has no context yet."""
        with self._environment.begin() as transaction:
            return [one for one in dict.fromkeys(captions) if transaction.get(context_key(one)) is None]

    def finish(self, header: CacheHeader) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.delete(_WANTED)
            transaction.put(HEADER_KEY, header.to_json())
        self._environment.sync(True)

    def count(self, kind: bytes) -> int:
        """Entries whose key begins so."""
        with self._environment.begin() as transaction:
            return sum(key.startswith(kind) for key in transaction.cursor().iternext(values=False))


def _begin(path: Path, header: CacheHeader, max_bytes: int) -> lmdb.Environment:
    """The unfinished store, if it is for the same header; else a new one."""
    for _ in range(2):
        try:
            size = max(min(_FIRST_MAP, max_bytes), path.stat().st_size if path.exists() else 0)
            environment = lmdb.open(str(path), subdir=False, lock=False, map_size=size)
            with environment.begin(write=True) as transaction:
                if transaction.stat()["entries"] == 0:
                    transaction.put(_WANTED, header.to_json())
                if transaction.get(_WANTED) == header.to_json():
                    return environment
            environment.close()
        except lmdb.Error:
            pass  # not a store, or one that a crash of the machine left broken: begin anew
        path.write_bytes(b"")
    raise ValueError(f"{path}: cannot be written as an LMDB store")


def _draw(dataset: AnyWordDataset, size: Size, with_picture: bool, index: int) -> Drawn:
    record = dataset.record(index)
    try:
        pixels = load_image(record.image_path)
    except SampleError as error:
        return Drawn(index, None, None, None, error.reason)
    file_size, pixels = pixels.shape[:2], resize_image(pixels, size)
    scaled = fit_record(record, file_size, size)
    item = rasters_item(record, file_size, pack_rasters(dataset.drawn(scaled, pixels), len(scaled.lines)))
    if not with_picture:
        return Drawn(index, item, None, None)
    masked = pixels.copy()
    masked[render.fill_polygons([line.polygon for line in scaled.lines], size) > 0] = 0
    return Drawn(index, item, pixels, masked)


def _items(drawn: Sequence[Drawn], dataset: AnyWordDataset, encode: EncodeImages | None) -> list[tuple[bytes, bytes]]:
    """Everything to be written of a chunk."""
    good = [one for one in drawn if one.item is not None]
    items = [one.item for one in good if one.item is not None]
    if encode is not None and good:
        pictures = np.stack([one.picture for one in good if one.picture is not None])
        masked = np.stack([one.masked for one in good if one.masked is not None])
        for one, latents in zip(good, encode(pictures, masked), strict=True):
            items.append(latents_item(dataset.record(one.index), latents))
    return items


def _fixed_captions(drawn: Sequence[Drawn], dataset: AnyWordDataset) -> Iterator[str]:
    """The image captions of a chunk that are the same in every epoch."""
    for one in drawn:
        if one.item is not None:
            caption = fixed_image_caption(dataset.record(one.index).caption, dataset.config.max_caption_words)
            if caption is not None:
                yield caption


def _chunks(drawn: Iterator[Drawn], size: int) -> Iterator[tuple[int, list[Drawn]]]:
    """Number of records and records of each chunk."""
    chunk: list[Drawn] = []
    for one in drawn:
        chunk.append(one)
        if len(chunk) == size:
            yield len(chunk), chunk
            chunk = []
    if chunk:
        yield len(chunk), chunk


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[[Callable[[int], Drawn], Sequence[int]], Iterator[Drawn]]]:
    if workers < 1:
        yield map  # type: ignore[misc]
        return
    with get_context("fork").Pool(workers, initializer=_begin_worker, initargs=(os.getpid(),)) as pool:
        yield lambda draw, todo: pool.imap(draw, todo, chunksize=8)


def _begin_worker(parent: int) -> None:
    """One thread each, and no worker outlives a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


@contextlib.contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{path}: another process is building this feature cache") from error
        yield
        Path(file.name).unlink(missing_ok=True)
