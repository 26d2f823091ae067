"""Annotated pictures packed into a few arrays: `RecordPacker` writes them, `Records` reads them one at a time.

Three million pictures as Python objects would take tens of gigabytes. Every forked worker would copy them, because
reading an object writes its reference count. In packed form, a `Record` is created when it is read.

A packed record is little-endian, without padding: length of the name, the name; length of the caption, the caption;
number of lines, number of ignored polygons; each line (lengths of text and language, number of corners, whether the
colour is known, the colour, text, language, corners); each ignored polygon (number of corners, corners). Texts are
UTF-8, their lengths are in bytes.

Shape legend: N records, P corners.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from anytext2.core.batch import Record, TextLine

_COUNT = struct.Struct("<I")
_COUNTS = struct.Struct("<II")
_LINE = struct.Struct("<IIIBBBB")
_CORNER = np.dtype("<f4")
_SURROGATES = "surrogatepass"  # any Python string survives a round trip


class Records(Sequence[Record]):
    """An immutable sequence of packed records from one or several sources (annotation files); see `RecordPacker`.

    `records[i]` creates a new `Record` at each access. `records[a:b]` and `select` are views that share the bytes.
    Pickling a view writes the bytes of its own records only.
    """

    def __init__(
        self,
        data: np.ndarray,
        starts: np.ndarray,
        sources: np.ndarray,
        roots: tuple[Path, ...],
        selection: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            data: uint8, the packed records one after the other.
            starts: int64 [N + 1], the first byte of each record, and the end.
            sources: int32 [N], the source of each record.
            roots: picture folder of each source.
            selection: int64, indices of the records in a view; None for all.
        """
        self._data, self._starts, self._sources, self._roots = data, starts, sources, roots
        self._selection = selection

    def __len__(self) -> int:
        return len(self._sources if self._selection is None else self._selection)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return self.select(np.arange(*index.indices(len(self))))
        position = self._position(index)
        packed = self._data[self._starts[position] : self._starts[position + 1]].tobytes()
        return _unpack_record(packed, self._roots[self._sources[position]])

    def name(self, index: int) -> str:
        """The name of record `index`; the rest of the record is not decoded."""
        start = int(self._starts[self._position(index)])
        (length,) = _COUNT.unpack(self._data[start : start + _COUNT.size].tobytes())
        start += _COUNT.size
        return self._data[start : start + length].tobytes().decode("utf-8", _SURROGATES)

    @property
    def sources(self) -> np.ndarray:
        """Number of each record's source: int32 [N]."""
        return self._sources if self._selection is None else self._sources[self._selection]

    @property
    def nbytes(self) -> int:
        """Memory in bytes, including what is shared with other views."""
        shared = self._data.nbytes + self._starts.nbytes + self._sources.nbytes
        return shared + (0 if self._selection is None else self._selection.nbytes)

    def select(self, indices: np.ndarray) -> Records:
        """A view of the records at `indices`: integers [M] in 0..N-1, in any order, repeats allowed.

        Raises IndexError for an index out of range.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"records {indices.min()} to {indices.max()} of {len(self)}")
        selection = indices.copy() if self._selection is None else self._selection[indices]
        return Records(self._data, self._starts, self._sources, self._roots, selection)

    def _position(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return index if self._selection is None else int(self._selection[index])

    def __reduce__(self) -> tuple[Any, ...]:
        if self._selection is None:
            return Records, (self._data, self._starts, self._sources, self._roots)
        begin, end = self._starts[self._selection], self._starts[self._selection + 1]
        pieces = [self._data[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
        data = np.concatenate([*pieces, np.empty(0, np.uint8)])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(end - begin)])
        return Records, (data, starts, self.sources, self._roots)


class RecordPacker:
    """Packs records: `add` each record, `end_source` after each source, then take `records` once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._starts = array("q", [0])
        self._roots: list[Path] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, name: str, caption: str, lines: Sequence[TextLine], ignored_polygons: Sequence[np.ndarray]) -> None:
        """Appends one record to the current source. Its image path will be the source's root / name."""
        for text in (name, caption):
            encoded = text.encode("utf-8", _SURROGATES)
            self._data += _COUNT.pack(len(encoded)) + encoded
        self._data += _COUNTS.pack(len(lines), len(ignored_polygons))
        for line in lines:
            self._data += _pack_line(line)
        for polygon in ignored_polygons:
            self._data += _COUNT.pack(len(polygon)) + _pack_corners(polygon)
        self._starts.append(len(self._data))

    def truncate(self, length: int) -> None:
        """Keeps only the first `length` records. Records of ended sources cannot be removed."""
        assert (self._ends[-1] if self._ends else 0) <= length <= len(self)
        del self._starts[length + 1 :]
        del self._data[self._starts[-1] :]

    def end_source(self, root: Path) -> None:
        """Makes the records since the last call one source with pictures in the folder `root`."""
        self._roots.append(root)
        self._ends.append(len(self))

    def records(self) -> Records:
        """All packed records. They take over the packer's memory: a later `add` raises BufferError."""
        assert len(self) == (self._ends[-1] if self._ends else 0), "every record belongs to a source"
        counts: np.ndarray = np.diff(np.array([0, *self._ends], np.int64))
        sources = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # Views of the buffers: a copy would double the peak memory.
        data, starts = np.frombuffer(self._data, np.uint8), np.frombuffer(self._starts, np.int64)
        data.flags.writeable = starts.flags.writeable = False
        return Records(data, starts, sources, tuple(self._roots))


def _pack_line(line: TextLine) -> bytes:
    text, language = line.text.encode("utf-8", _SURROGATES), line.language.encode("utf-8", _SURROGATES)
    known, color = line.color is not None, line.color or (0, 0, 0)
    head = _LINE.pack(len(text), len(language), len(line.polygon), known, *color)
    return head + text + language + _pack_corners(line.polygon)


def _pack_corners(polygon: np.ndarray) -> bytes:
    assert polygon.ndim == 2 and polygon.shape[1] == 2, polygon.shape
    return polygon.astype(_CORNER, copy=False).tobytes()


def _unpack_record(packed: bytes, root: Path) -> Record:
    name, at = _unpack_string(packed, 0)
    caption, at = _unpack_string(packed, at)
    n_lines, n_ignored = _COUNTS.unpack_from(packed, at)
    at += _COUNTS.size
    lines, ignored = [], []
    for _ in range(n_lines):
        line, at = _unpack_line(packed, at)
        lines.append(line)
    for _ in range(n_ignored):
        (corners,) = _COUNT.unpack_from(packed, at)
        polygon, at = _unpack_corners(packed, at + _COUNT.size, corners)
        ignored.append(polygon)
    return Record(root / name, name, caption, tuple(lines), tuple(ignored))


def _unpack_string(packed: bytes, at: int) -> tuple[str, int]:
    (length,) = _COUNT.unpack_from(packed, at)
    begin, end = at + _COUNT.size, at + _COUNT.size + length
    return packed[begin:end].decode("utf-8", _SURROGATES), end


def _unpack_line(packed: bytes, at: int) -> tuple[TextLine, int]:
    text_length, language_length, corners, known, *color = _LINE.unpack_from(packed, at)
    text_end = at + _LINE.size + text_length
    language_end = text_end + language_length
    text = packed[at + _LINE.size : text_end].decode("utf-8", _SURROGATES)
    language = packed[text_end:language_end].decode("utf-8", _SURROGATES)
    polygon, end = _unpack_corners(packed, language_end, corners)
    red, green, blue = color
    return TextLine(text, polygon, language, (red, green, blue) if known else None), end


def _unpack_corners(packed: bytes, at: int, count: int) -> tuple[np.ndarray, int]:
    """A copy of the polygon float32 [P, 2] at byte `at`, and its end."""
    flat = np.frombuffer(packed, _CORNER, 2 * count, at).astype(np.float32)
    return flat.reshape(count, 2), at + 2 * count * _CORNER.itemsize
