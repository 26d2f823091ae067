"""Annotated pictures in packed form: `Packer` writes them, `Records` reads them back one at a time.

Three million pictures as Python objects would take tens of gigabytes, and every forked worker would copy them bit by
bit, since merely looking at an object writes its reference count. Here all of them are a few arrays, and a `Record`
exists only while somebody looks at it.

A packed record, little-endian, without padding: length of the name, the name; length of the caption, the caption;
number of lines, number of ignored polygons; then each line (lengths of text and language, number of corners, whether
a colour is known, the colour, text, language, corners) and each polygon (number of corners, corners). Texts are
UTF-8, lengths are bytes.

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
_SURROGATES = "surrogatepass"  # whatever a Python string can hold comes back


class Records(Sequence[Record]):
    """Packed records of one or several sources (annotation files); made by `Packer`, immutable.

    `records[i]` is a new `Record` at each access, `records[a:b]` a view, as is `select`: views share the bytes.
    Pickling writes the bytes of the records in view only, and nothing for each record.
    """

    def __init__(
        self,
        data: np.ndarray,
        starts: np.ndarray,
        sources: np.ndarray,
        roots: tuple[Path, ...],
        chosen: np.ndarray | None = None,
    ) -> None:
        """data: uint8, the records one after the other; starts: int64 [N + 1], where each begins, and the end;
        sources: int32 [N]; roots: the folder of each source's pictures; chosen: int64, the records in view."""
        self._data, self._starts, self._sources, self._roots = data, starts, sources, roots
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._sources if self._chosen is None else self._chosen)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return self.select(np.arange(*index.indices(len(self))))
        place = self._place(index)
        packed = self._data[self._starts[place] : self._starts[place + 1]].tobytes()
        return _unpacked(packed, self._roots[self._sources[place]])

    def name(self, index: int) -> str:
        """The name of record `index`, without decoding the rest of it."""
        start = int(self._starts[self._place(index)])
        (length,) = _COUNT.unpack(self._data[start : start + _COUNT.size].tobytes())
        start += _COUNT.size
        return self._data[start : start + length].tobytes().decode("utf-8", _SURROGATES)

    def source_of(self, index: int) -> int:
        """Which source record `index` is from: 0 for the first."""
        return int(self._sources[self._place(index)])

    @property
    def sources(self) -> np.ndarray:
        """Which source each record is from: int32 [N]."""
        return self._sources if self._chosen is None else self._sources[self._chosen]

    @property
    def nbytes(self) -> int:
        """Bytes of memory, those shared with other views included."""
        shared = self._data.nbytes + self._starts.nbytes + self._sources.nbytes
        return shared + (0 if self._chosen is None else self._chosen.nbytes)

    def select(self, indices: np.ndarray) -> Records:
        """A view of some records, in the order of `indices` (integers [M], each in 0..N-1; repeats are allowed).

        Raises IndexError for an index beyond the records.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"records {indices.min()} to {indices.max()} of {len(self)}")
        chosen = indices.copy() if self._chosen is None else self._chosen[indices]
        return Records(self._data, self._starts, self._sources, self._roots, chosen)

    def _place(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return index if self._chosen is None else int(self._chosen[index])

    def __reduce__(self) -> tuple[Any, ...]:
        if self._chosen is None:
            return Records, (self._data, self._starts, self._sources, self._roots)
        begin, end = self._starts[self._chosen], self._starts[self._chosen + 1]
        pieces = [self._data[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
        data = np.concatenate([*pieces, np.empty(0, np.uint8)])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(end - begin)])
        return Records, (data, starts, self.sources, self._roots)


class RecordPacker:
    """Packs records one after the other; `records` ends it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._starts = array("q", [0])
        self._roots: list[Path] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, name: str, caption: str, lines: Sequence[TextLine], ignored_polygons: Sequence[np.ndarray]) -> None:
        """Appends one record of the source at hand. Its image path will be the source's root / name."""
        for text in (name, caption):
            encoded = text.encode("utf-8", _SURROGATES)
            self._data += _COUNT.pack(len(encoded)) + encoded
        self._data += _COUNTS.pack(len(lines), len(ignored_polygons))
        for line in lines:
            self._data += _packed_line(line)
        for polygon in ignored_polygons:
            self._data += _COUNT.pack(len(polygon)) + _packed_corners(polygon)
        self._starts.append(len(self._data))

    def truncate(self, length: int) -> None:
        """Keeps the first `length` records only, which must not cut into a source that has ended."""
        assert (self._ends[-1] if self._ends else 0) <= length <= len(self)
        del self._starts[length + 1 :]
        del self._data[self._starts[-1] :]

    def end_source(self, root: Path) -> None:
        """The records since the last call are one source, whose pictures lie in `root`."""
        self._roots.append(root)
        self._ends.append(len(self))

    def records(self) -> Records:
        """What was packed. The packer gives its memory away with it: adding more is a BufferError."""
        assert len(self) == (self._ends[-1] if self._ends else 0), "every record belongs to a source"
        counts: np.ndarray = np.diff(np.array([0, *self._ends], np.int64))
        sources = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # Views of the buffers, since a copy would double the peak.
        data, starts = np.frombuffer(self._data, np.uint8), np.frombuffer(self._starts, np.int64)
        data.flags.writeable = starts.flags.writeable = False
        return Records(data, starts, sources, tuple(self._roots))


def _packed_line(line: TextLine) -> bytes:
    text, language = line.text.encode("utf-8", _SURROGATES), line.language.encode("utf-8", _SURROGATES)
    known, color = line.color is not None, line.color or (0, 0, 0)
    head = _LINE.pack(len(text), len(language), len(line.polygon), known, *color)
    return head + text + language + _packed_corners(line.polygon)


def _packed_corners(polygon: np.ndarray) -> bytes:
    assert polygon.ndim == 2 and polygon.shape[1] == 2, polygon.shape
    return polygon.astype(_CORNER, copy=False).tobytes()


def _unpacked(packed: bytes, root: Path) -> Record:
    name, at = _string(packed, 0)
    caption, at = _string(packed, at)
    n_lines, n_ignored = _COUNTS.unpack_from(packed, at)
    at += _COUNTS.size
    lines, ignored = [], []
    for _ in range(n_lines):
        line, at = _line(packed, at)
        lines.append(line)
    for _ in range(n_ignored):
        (corners,) = _COUNT.unpack_from(packed, at)
        polygon, at = _corners(packed, at + _COUNT.size, corners)
        ignored.append(polygon)
    return Record(root / name, name, caption, tuple(lines), tuple(ignored))


def _string(packed: bytes, at: int) -> tuple[str, int]:
    (length,) = _COUNT.unpack_from(packed, at)
    begin, end = at + _COUNT.size, at + _COUNT.size + length
    return packed[begin:end].decode("utf-8", _SURROGATES), end


def _line(packed: bytes, at: int) -> tuple[TextLine, int]:
    text_length, language_length, corners, known, *color = _LINE.unpack_from(packed, at)
    text_end = at + _LINE.size + text_length
    language_end = text_end + language_length
    text = packed[at + _LINE.size : text_end].decode("utf-8", _SURROGATES)
    language = packed[text_end:language_end].decode("utf-8", _SURROGATES)
    polygon, end = _corners(packed, language_end, corners)
    red, green, blue = color
    return TextLine(text, polygon, language, (red, green, blue) if known else None), end


def _corners(packed: bytes, at: int, count: int) -> tuple[np.ndarray, int]:
    """A polygon float32 [P, 2] of its own memory, and where it ends."""
    flat = np.frombuffer(packed, _CORNER, 2 * count, at).astype(np.float32)
    return flat.reshape(count, 2), at + 2 * count * _CORNER.itemsize
