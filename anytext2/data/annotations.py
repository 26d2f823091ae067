"""Reads AnyWord annotation files (JSON) as records.

{"data_root"?: str, "data_list": [{"img_name", "caption"?, "wm_score"?, "annotations"?: [
    {"polygon": [[x, y], ...], "text", "language"?, "valid"?, "color"?: [r, g, b]}, ...]}, ...]}

Fields marked ? are optional, other fields are ignored. The top level's fields may come in any order. If an item repeats
a field, the last one counts. Polygons are in pixels of the image file. A missing `data_root` is the file's folder, a
missing language is inferred from the text. The file is read item by item and the records are packed, so that it may be
larger than the memory.

A file that is not an annotation file raises ValueError. An item or line with a missing or malformed field is skipped
and counted. If the share of such items is above `max_faulty`, the file raises ValueError. Other items and lines that
cannot be used (watermarked, empty text, ...) are skipped and counted; anytext2/data/limits.py says which are faults.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anytext2.core.batch import TextLine
from anytext2.data.annotation_items import (
    InvalidFieldError,
    SkippedError,
    is_valid_unicode,
    optional_field,
    parse_item,
    required_field,
    without_repeats,
)
from anytext2.data.json_stream import JsonError, Member, NotAnObjectError, iter_members
from anytext2.data.limits import IGNORED, limit_of
from anytext2.data.records import RecordPacker, Records
from anytext2.data.text_encoding import encoding_problem

_CONFIRM_EVERY = 4096  # items
_LISTED_LANGUAGES, _LANGUAGE_CHARACTERS = 10, 20  # most languages in a report, most characters of each name


@dataclass(frozen=True)
class LoadReport:
    """Counts of loaded and skipped pictures and lines.

    skipped: reason ("pictures: ..." or "lines: ...") -> count. examples: reason of a fault -> its first case, in one
    line with file, field and value. languages: language -> number of lines. notes: "lines: ..." -> number of lines that
    are used, but changed or perhaps not drawn as they are written. textless: pictures without a line. annotated: items
    with the field annotations. item_fields: the fields of the first item. files: each file and its own report, in
    order; empty in the report of one file.
    """

    pictures: int
    lines: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    textless: int = 0
    annotated: int = 0
    item_fields: tuple[str, ...] = ()
    files: tuple[tuple[Path, LoadReport], ...] = ()

    def __str__(self) -> str:
        skipped = "; ".join(self._describe_skipped(reason) for reason in sorted(self.skipped))
        counts = " + ".join(map(str, self.per_source))
        files = f" from {len(self.files)} files ({counts})" if len(self.files) > 1 else ""
        loaded = f"{self.pictures} pictures{files} with {self.lines} lines{self._describe_languages()}"
        loaded += f", {self.textless} pictures without text" if self.textless else ""
        notes = "; ".join(f"{note}: {self.notes[note]}" for note in sorted(self.notes))
        return loaded + (f" (left out: {skipped})" if skipped else "") + (f" (used, but {notes})" if notes else "")

    @property
    def items(self) -> int:
        """Number of items in the lists."""
        return self.pictures + sum(count for reason, count in self.skipped.items() if reason.startswith("pictures: "))

    @property
    def per_source(self) -> tuple[int, ...]:
        """Number of pictures of each file."""
        return tuple(report.pictures for _, report in self.files)

    def _describe_languages(self) -> str:
        """The most frequent languages with their counts. A file may name any number of languages, of any length."""
        by_count = sorted(self.languages.items(), key=lambda item: (-item[1], item[0]))
        listed = [f"{n} {escape_unprintable(name)[:_LANGUAGE_CHARACTERS]}" for name, n in by_count[:_LISTED_LANGUAGES]]
        others = sum(count for _, count in by_count[_LISTED_LANGUAGES:])
        listed += [f"{others} in {len(by_count) - _LISTED_LANGUAGES} other languages"] if others else []
        return f" ({', '.join(listed)})" if listed else ""

    def _describe_skipped(self, reason: str) -> str:
        example = f", first {self.examples[reason]}" if reason in self.examples else ""
        return f"{reason}: {self.skipped[reason]}{example}"


def load_records(
    paths: str | Path | Iterable[str | Path],
    wm_threshold: float = 1.0,
    cap_watermark: bool = False,
    fraction: float = 1.0,
    max_faulty: float = 0.01,
) -> tuple[Records, LoadReport]:
    """Reads annotation files, in order. Each file is one source of the records.

    A relative `data_root` is relative to the file's folder; without one it is that folder. Pictures outside `data_root`
    are skipped. Whether the pictures exist is not checked.

    Args:
        wm_threshold: pictures with a greater watermark score are skipped.
        cap_watermark: if there is a score, captions end with " with watermarks " (score > 0.5) or " no watermarks ".
        fraction: share of each file's items to load, from the beginning of its list.
        max_faulty: greatest share of a file's items that may have a missing or malformed field.
    Raises:
        ValueError: an argument is out of range, or a file cannot be used; one line with file and field.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: {fraction} must be in (0, 1]")
    if not 0 <= max_faulty <= 1:
        raise ValueError(f"max_faulty: {max_faulty} must be in [0, 1]")
    options = _Options(wm_threshold, cap_watermark, fraction, max_faulty)
    packer = RecordPacker()
    files = [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths)
    reports = tuple((path, _load_file(path, options, packer)) for path in files)
    return packer.records(), _total(reports)


@dataclass(frozen=True)
class _Options:
    """Arguments of `load_records`."""

    wm_threshold: float
    cap_watermark: bool
    fraction: float
    max_faulty: float

    def n_used(self, items: int) -> int:
        """Number of items that are loaded from a list of `items`; it never falls when the list grows."""
        return min(items, max(1, round(items * self.fraction)))


def _load_file(path: Path, options: _Options, packer: RecordPacker) -> LoadReport:
    """Packs one file as one source."""
    counts, before, n_items = _LoadCounts(), len(packer), 0
    top: dict[str, Any] = {}
    for name, number, value in _file_members(path):
        if number is None:
            if name in top:
                raise ValueError(f"{path}: {name}: the file has this field twice")
            if name in ("data_root", "data_list"):
                top[name] = value
        elif name == "data_list":
            _pack_item(value, number, options, packer, counts)
            n_items = number + 1
            if n_items % _CONFIRM_EVERY == 0:
                counts.confirm(options.n_used(n_items))
    root = path.parent / _data_root(path, top)
    n_used = options.n_used(n_items)
    counts.confirm(n_used)
    _check_fault_rate(path, counts, n_used, options.max_faulty)
    packer.truncate(before + counts.count(_KEPT))
    packer.end_source(root)
    return counts.report(path, n_used, n_items)


def _file_members(path: Path) -> Iterator[Member]:
    """`iter_members` of a file. Raises ValueError, in one line, if it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from iter_members(file)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: annotation file does not exist") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {encoding_problem(path, error)}") from error
    except JsonError as error:
        problem = f"expected an object with 'data_root' and 'data_list', {error}"
        problem = problem if isinstance(error, NotAnObjectError) else str(error)
        raise ValueError(f"{path}: {encoding_problem(path) or problem}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot read the annotation file ({error})") from error


def _data_root(path: Path, top: dict[str, Any]) -> str:
    """The field data_root, '.' if it is missing. Raises ValueError unless data_root and data_list are valid."""
    try:
        root: str = optional_field(top, "data_root", str) or "."
        required_field(top, "data_list", list)
    except InvalidFieldError as fault:
        raise ValueError(f"{path}: {fault.path}: {fault.problem}") from fault
    if "\0" in root or not is_valid_unicode(root):
        raise ValueError(f"{path}: data_root: {root!r} is not the name of a folder")
    return root


def _check_fault_rate(path: Path, counts: _LoadCounts, n_items: int, max_faulty: float) -> None:
    """Raises ValueError, with the first fault, if more than the share `max_faulty` of the items have one."""
    n_faulty = counts.count(_FAULTY)
    if n_faulty > max_faulty * n_items:
        raise ValueError(
            f"{path}: {counts.first_malformed} ({n_faulty} of {n_items} items have a fault; "
            f"up to max_faulty={max_faulty:g} of them would be left out and counted)"
        )


def _pack_item(item: Any, number: int, options: _Options, packer: RecordPacker, counts: _LoadCounts) -> None:
    """Packs one item as a record and counts what is skipped."""
    if number == 0 and isinstance(item, dict):
        counts.item_fields = tuple(item)
    try:
        parsed = parse_item(item, options.wm_threshold, options.cap_watermark)
    except SkippedError as error:
        counts.skip(number, f"pictures: {error.reason}", error)
        return
    lines: list[TextLine] = []
    ignored: list[np.ndarray] = []
    found = list(parsed.lines())
    for line, (_, notes) in zip(without_repeats(line for line, _ in found), found, strict=True):
        if isinstance(line, TextLine):
            lines.append(line)
            counts.add(number, ("language", line.language))
            for note in notes:
                counts.note(number, f"lines: {note.about}")
        elif line.polygon is None:
            counts.skip(number, f"lines: {line.reason}", line)
        else:
            ignored.append(line.polygon)
            counts.skip(number, f"lines: {line.reason}{IGNORED}", line)
    packer.add(parsed.name, parsed.caption, lines, ignored)
    counts.add(number, _KEPT)
    if not lines:
        counts.add(number, _TEXTLESS)
    if parsed.annotations is not None:
        counts.add(number, _ANNOTATED)


_Kind = tuple[str, str]  # category and name, for example ("language", "Latin")
_KEPT: _Kind = ("picture", "kept")
_FAULTY: _Kind = ("picture", "with a fault")
_ANNOTATED: _Kind = ("picture", "with the field annotations")
_TEXTLESS: _Kind = ("picture", "without text")


class _LoadCounts:
    """Counts of the loaded and skipped items and lines of one file.

    With fraction < 1 the number of items that are loaded is known only at the end of the file. A count is therefore
    kept as a pair (item, kind) until `confirm` says that its item is among them.
    """

    def __init__(self) -> None:
        self.item_fields: tuple[str, ...] = ()
        self.first_malformed = ""
        self._examples: dict[str, tuple[int, str]] = {}
        self._confirmed: Counter[_Kind] = Counter()
        self._ids: dict[_Kind, int] = {}
        self._pending_items, self._pending_kinds = array("Q"), array("I")
        self._last_faulty = -1

    def add(self, item: int, kind: _Kind) -> None:
        """Counts one of a kind for item number `item`. Items come in order."""
        self._pending_items.append(item)
        self._pending_kinds.append(self._ids.setdefault(kind, len(self._ids)))

    def skip(self, item: int, reason: str, cause: SkippedError) -> None:
        """Counts a skipped item or line. The first one of each fault is kept as an example."""
        self.add(item, ("skipped", reason))
        place = f"data_list[{item}]" + (f".{cause.path}" if cause.path else "")
        if limit_of(reason).key and reason not in self._examples:
            self._examples[reason] = (item, f"{place}: {cause.problem}")
        if isinstance(cause, InvalidFieldError) and item != self._last_faulty:
            self._last_faulty = item
            self.first_malformed = self.first_malformed or f"{place}: {cause.problem}"
            self.add(item, _FAULTY)

    def note(self, item: int, note: str) -> None:
        """Counts a line that is used, but changed or perhaps not drawn as it is written."""
        assert not limit_of(note).key, "what is used is no fault"
        self.add(item, ("note", note))

    def confirm(self, n_used: int) -> None:
        """Adds up the pending counts of the first `n_used` items."""
        end = bisect_left(self._pending_items, n_used)
        kinds = list(self._ids)
        for number, count in Counter(self._pending_kinds[:end]).items():
            self._confirmed[kinds[number]] += count
        del self._pending_items[:end], self._pending_kinds[:end]

    def count(self, kind: _Kind) -> int:
        """The confirmed count of a kind."""
        return self._confirmed[kind]

    def report(self, path: Path, n_used: int, n_items: int) -> LoadReport:
        """The report on a file of which n_used of n_items are loaded; their counts are confirmed."""
        skipped = self._counts_of("skipped")
        if n_items > n_used:
            skipped["pictures: beyond the fraction in use"] = n_items - n_used
        languages, kept = self._counts_of("language"), self.count(_KEPT)
        examples = {reason: f"{path}: {text}" for reason, (item, text) in self._examples.items() if item < n_used}
        notes, textless, annotated = self._counts_of("note"), self.count(_TEXTLESS), self.count(_ANNOTATED)
        total = languages.total()
        return LoadReport(kept, total, skipped, examples, languages, notes, textless, annotated, self.item_fields)

    def _counts_of(self, category: str) -> Counter[str]:
        return Counter({name: count for (kind, name), count in self._confirmed.items() if kind == category})


def escape_unprintable(text: str) -> str:
    """The text with everything that is not printable (line breaks, terminal codes, half surrogates) written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _total(files: tuple[tuple[Path, LoadReport], ...]) -> LoadReport:
    reports = [report for _, report in files]
    skipped: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for report in reports:
        skipped.update(report.skipped)
        notes.update(report.notes)
        languages.update(report.languages)
        examples = {**report.examples, **examples}
    return LoadReport(
        pictures=sum(report.pictures for report in reports),
        lines=languages.total(),
        skipped=dict(skipped),
        examples=examples,
        languages=dict(languages),
        notes=dict(notes),
        textless=sum(report.textless for report in reports),
        annotated=sum(report.annotated for report in reports),
        item_fields=reports[0].item_fields if reports else (),
        files=files,
    )
