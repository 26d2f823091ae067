"""AnyWord annotation JSON -> records.

{"data_root": str, "data_list": [{"img_name", "caption"?, "wm_score"?, "annotations"?: [
    {"polygon": [[x, y], ...], "text", "language", "valid"?, "color"?: [r, g, b]}, ...]}, ...]}

The top level's fields may come in any order, fields that are not named here are ignored, and of one that an item
repeats the last counts. Polygons are in pixels of the image file. The file is read item by item and the records are
packed, so that it may be larger than the memory.

There are three kinds of trouble. What is no annotation file is a ValueError. A faulty item (a field missing or of the
wrong form) is left out and counted, as is a faulty line of a good item; but where too large a share of the items has a
fault, the file's author must mend it, and that is a ValueError too. Data that is legal but of no use is left out and
counted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anytext2.core.batch import TextLine
from anytext2.data.annotation_items import InvalidFieldError, SkippedError, is_valid_unicode, parse_item, required_field
from anytext2.data.json_stream import JsonError, Member, NotAnObjectError, iter_members
from anytext2.data.records import RecordPacker, Records

_SETTLE_EVERY = 4096  # items
_TOLD_LANGUAGES, _NAME_CHARACTERS = 10, 20


@dataclass(frozen=True)
class LoadReport:
    """What loading kept and left out.

    skipped: reason ("pictures: ..." or "lines: ...") -> how many. examples: reason of a fault -> the first of them, one
    line with file, field and value. languages: how many of the lines are in each. per_source: how many of the
    pictures are from each file, in order.
    """

    pictures: int
    lines: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    per_source: tuple[int, ...] = ()

    def __str__(self) -> str:
        left_out = "; ".join(self._left_out(reason) for reason in sorted(self.skipped))
        files = f" from {len(self.per_source)} files ({_listed(self.per_source)})" if len(self.per_source) > 1 else ""
        whole = f"{self.pictures} pictures{files} with {self.lines} lines{self._of_languages()}"
        return whole + (f" (left out: {left_out})" if left_out else "")

    def _of_languages(self) -> str:
        """The most frequent ones; a file may name any number, of any length."""
        often = sorted(self.languages.items(), key=lambda one: (-one[1], one[0]))
        told = [f"{count} {_printable(name)[:_NAME_CHARACTERS]}" for name, count in often[:_TOLD_LANGUAGES]]
        others = sum(count for _, count in often[_TOLD_LANGUAGES:])
        told += [f"{others} in {len(often) - _TOLD_LANGUAGES} other languages"] if others else []
        return f" ({', '.join(told)})" if told else ""

    def _left_out(self, reason: str) -> str:
        example = f", first {self.examples[reason]}" if reason in self.examples else ""
        return f"{reason}: {self.skipped[reason]}{example}"


def load_records(
    paths: str | Path | Iterable[str | Path],
    wm_threshold: float = 1.0,
    cap_watermark: bool = False,
    fraction: float = 1.0,
    max_faulty: float = 0.01,
) -> tuple[Records, LoadReport]:
    """Reads annotation files, in order; each is one source of the records.

    wm_threshold: pictures with a greater watermark score are left out. cap_watermark: the caption says whether there
    are watermarks (score above 0.5), where a score is given. fraction: share of each file's list to use, from its
    beginning. max_faulty: greatest share of a file's items that may have a fault. A relative `data_root` is relative
    to the file's folder; pictures outside of it are left out. Whether the pictures exist is not checked here.
    Raises ValueError with one line that names file and field.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: {fraction} must be in (0, 1]")
    if not 0 <= max_faulty <= 1:
        raise ValueError(f"max_faulty: {max_faulty} must be in [0, 1]")
    rules = _Rules(wm_threshold, cap_watermark, fraction, max_faulty)
    packer = RecordPacker()
    files = [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths)
    reports = [_load(path, rules, packer) for path in files]
    return packer.records(), _total(reports)


@dataclass(frozen=True)
class _Rules:
    wm_threshold: float
    cap_watermark: bool
    fraction: float
    max_faulty: float

    def in_use(self, items: int) -> int:
        """How many items of a list are used; never falls when the list grows."""
        return min(items, max(1, round(items * self.fraction)))


def _load(path: Path, rules: _Rules, packer: RecordPacker) -> LoadReport:
    """Packs one file as one source."""
    counts, before, n_items = _LoadCounts(), len(packer), 0
    top: dict[str, Any] = {}
    for name, number, value in _members(path):
        if number is None:
            if name in top:
                raise ValueError(f"{path}: {name}: the file has this field twice")
            if name in ("data_root", "data_list"):
                top[name] = value
        elif name == "data_list":
            _take(value, number, rules, packer, counts)
            n_items = number + 1
            if n_items % _SETTLE_EVERY == 0:
                counts.settle(rules.in_use(n_items))
    root = path.parent / _top_fields(path, top)
    n_used = rules.in_use(n_items)
    counts.settle(n_used)
    _refuse_if_too_faulty(path, counts, n_used, rules.max_faulty)
    packer.truncate(before + counts.count(_KEPT))
    packer.end_source(root)
    return counts.report(path, n_used, n_items)


def _members(path: Path) -> Iterator[Member]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from iter_members(file)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: annotation file does not exist") from error
    except NotAnObjectError as error:
        raise ValueError(f"{path}: expected an object with 'data_root' and 'data_list', {error}") from error
    except JsonError as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the annotation file ({error})") from error


def _top_fields(path: Path, top: dict[str, Any]) -> str:
    """data_root, where both fields are as they must be."""
    try:
        root = required_field(top, "data_root", str)
        required_field(top, "data_list", list)
    except InvalidFieldError as fault:
        raise ValueError(f"{path}: {fault.path}: {fault.problem}") from fault
    if "\0" in root or not is_valid_unicode(root):
        raise ValueError(f"{path}: data_root: {root!r} is not the name of a folder")
    return root


def _refuse_if_too_faulty(path: Path, counts: _LoadCounts, n_items: int, max_faulty: float) -> None:
    n_faulty = counts.count(_FAULTY)
    if n_faulty > max_faulty * n_items:
        _, first = min(found for found in counts.examples.values())
        raise ValueError(
            f"{path}: {first} ({n_faulty} of {n_items} items have a fault; "
            f"up to max_faulty={max_faulty:g} of them would be left out and counted)"
        )


def _take(item: Any, number: int, rules: _Rules, packer: RecordPacker, counts: _LoadCounts) -> None:
    """Packs what is of use in an item and notes what is not."""
    try:
        found = parse_item(item, rules.wm_threshold, rules.cap_watermark)
    except SkippedError as reason:
        counts.leave_out(number, f"pictures: {reason.reason}", reason)
        return
    lines: list[TextLine] = []
    ignored: list[np.ndarray] = []
    for line in found.lines():
        if isinstance(line, TextLine):
            lines.append(line)
            counts.add(number, ("language", line.language))
        elif line.polygon is None:
            counts.leave_out(number, f"lines: {line.reason}", line)
        else:
            ignored.append(line.polygon)
            counts.leave_out(number, f"lines: {line.reason} (ignored by the loss)", line)
    packer.add(found.name, found.caption, lines, ignored)
    counts.add(number, _KEPT)


_Kind = tuple[str, str]
_KEPT: _Kind = ("picture", "kept")
_FAULTY: _Kind = ("picture", "with a fault")


class _LoadCounts:
    """Counts of what became of the items of one file.

    Which items are in use (a share of them) is known only at the end of the file, so that a count waits, as a pair of
    numbers, until its item is sure to be among them; with all items in use none waits for long.
    """

    def __init__(self) -> None:
        self.examples: dict[str, tuple[int, str]] = {}
        self._settled: Counter[_Kind] = Counter()
        self._ids: dict[_Kind, int] = {}
        self._waiting_items, self._waiting_kinds = array("Q"), array("I")
        self._last_faulty = -1

    def add(self, item: int, kind: _Kind) -> None:
        """Counts one of a kind for item number `item`; the items come in order."""
        self._waiting_items.append(item)
        self._waiting_kinds.append(self._ids.setdefault(kind, len(self._ids)))

    def leave_out(self, item: int, reason: str, cause: SkippedError) -> None:
        """Counts something left out; the first fault of each reason is kept as an example."""
        self.add(item, ("skipped", reason))
        if isinstance(cause, InvalidFieldError):
            place = f"data_list[{item}]" + (f".{cause.path}" if cause.path else "")
            self.examples.setdefault(reason, (item, f"{place}: {cause.problem}"))
            if item != self._last_faulty:
                self._last_faulty = item
                self.add(item, _FAULTY)

    def settle(self, n_sure: int) -> None:
        """The first `n_sure` items are in use."""
        end = bisect_left(self._waiting_items, n_sure)
        kinds = list(self._ids)
        for number, count in Counter(self._waiting_kinds[:end]).items():
            self._settled[kinds[number]] += count
        del self._waiting_items[:end], self._waiting_kinds[:end]

    def count(self, kind: _Kind) -> int:
        return self._settled[kind]

    def report(self, path: Path, n_used: int, n_items: int) -> LoadReport:
        """The report on a file of which n_used of n_items are in use; all those are settled."""
        skipped = self._of("skipped")
        if n_items > n_used:
            skipped["pictures: beyond the fraction in use"] = n_items - n_used
        languages, kept = self._of("language"), self.count(_KEPT)
        examples = {reason: f"{path}: {text}" for reason, (item, text) in self.examples.items() if item < n_used}
        return LoadReport(kept, languages.total(), skipped, examples, languages, (kept,))

    def _of(self, kind: str) -> Counter[str]:
        return Counter({name: count for (of, name), count in self._settled.items() if of == kind})


def _listed(counts: Sequence[int]) -> str:
    return " + ".join(map(str, counts))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _total(reports: Sequence[LoadReport]) -> LoadReport:
    skipped: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for report in reports:
        skipped.update(report.skipped)
        languages.update(report.languages)
        examples = {**report.examples, **examples}
    per_source = tuple(report.pictures for report in reports)
    return LoadReport(sum(per_source), languages.total(), dict(skipped), examples, dict(languages), per_source)
