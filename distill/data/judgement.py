"""Judges whether an annotation file can teach: which share of its lines is left out for a fault, and why.

Reading the annotations shows faults of form; the sizes of the pictures show where the lines lie. A run and the cache
builder look at a sample of the pictures (`judge_records`), launch/check_dataset.py at all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anytext2.core.batch import Record, TextLine
from anytext2.data.annotations import LoadReport, escape_unprintable
from anytext2.data.image_file import ImageHeader, read_header
from anytext2.data.image_lookup import find_image
from anytext2.data.limits import FAULTY_LINES, is_faulty_line, limit_of
from anytext2.data.options import DatasetConfig
from anytext2.data.records import Records
from anytext2.glyphs.fonts import FontTable
from anytext2.glyphs.rasters import is_drawable
from distill.data.picture_files import exif_advice, orientation_fit
from distill.data.placement import (
    COUNTER_CLOCKWISE,
    LINES,
    MOSTLY_OUTSIDE,
    WHOLLY_OUTSIDE,
    count_signs,
    is_clockwise,
    outside,
    remedy_outside,
    suspicion,
)

PROBED_PICTURES = 200
"""Pictures of each file, evenly spread, whose sizes are read when a run starts."""

UNDRAWABLE = "no character has a glyph"

_READERS = 16  # reading the beginning of a file is waiting for the disk


@dataclass(frozen=True)
class CountWithExample:
    """How often something occurs, and the first place where it does."""

    count: int
    example: str


@dataclass
class LinesInPictures:
    """Counts of lines whose pictures were looked at. found: by reason. signs: see distill/data/placement.py.

    orientation_fits: pictures with an EXIF orientation, by `orientation_fit`; exif: data.options.exif. examples: the
    first place of each reason and sign. unread: lines of pictures that cannot be read.
    """

    found: Counter[str] = field(default_factory=Counter)
    signs: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unread: int = 0
    orientation_fits: Counter[str] = field(default_factory=Counter)
    exif: str = "ignore"

    @property
    def looked_at(self) -> int:
        return self.signs[LINES] + self.unread

    def add(self, record: Record, header: ImageHeader, options: DatasetConfig, fonts: FontTable) -> None:
        """Counts the lines of one picture."""
        height, width = header.size(options.exif)
        size, self.exif = (width, height), options.exif
        if header.orientation > 1:
            self.orientation_fits[orientation_fit(record, header)] += 1
        for line in record.lines:
            reasons = list(_reasons_of(line, size, options, fonts))
            self.found.update(reasons)
            for name in (*count_signs(self.signs, line, size), *reasons):
                if name not in self.examples:
                    self.examples[name] = _place(record, line, size)

    def merge(self, other: LinesInPictures) -> None:
        """Adds the counts of pictures that come next."""
        self.found.update(other.found)
        self.signs.update(other.signs)
        self.examples = other.examples | self.examples
        self.unread += other.unread
        self.orientation_fits.update(other.orientation_fits)
        self.exif = other.exif

    def counts(self, prefix: str = "") -> dict[str, CountWithExample]:
        """The reasons that begin with `prefix`, most frequent first."""
        return {
            reason: CountWithExample(count, self.examples[reason])
            for reason, count in self.found.most_common()
            if reason.startswith(prefix)
        }


def _reasons_of(line: TextLine, size: tuple[int, int], options: DatasetConfig, fonts: FontTable) -> Iterator[str]:
    """What is counted of a line in a picture of `size` (width, height); of faults, one."""
    kind = outside(line.polygon, size)
    if kind:
        yield f"polygons: {kind}"
    if not is_clockwise(line.polygon):
        yield f"polygons: {COUNTER_CLOCKWISE}"
    is_lost = kind in (MOSTLY_OUTSIDE, WHOLLY_OUTSIDE)
    if not is_lost and not is_drawable(line.text[: options.max_chars], line.language, fonts):
        yield f"texts: {UNDRAWABLE}"


def _place(record: Record, line: TextLine, size: tuple[int, int]) -> str:
    corners = ", ".join(f"({x:g}, {y:g})" for x, y in line.polygon[:8].tolist())
    return f"{escape_unprintable(record.name)}, {size[0]} x {size[1]}: {line.text[:40]!r} at {corners}"


def judge_records(
    records: Records, report: LoadReport, options: DatasetConfig, max_faulty_lines: float, fonts: FontTable
) -> str:
    """What a sample of the pictures shows, in one line; empty if nothing.

    Raises ValueError, with the reason and the first example, if one of the files cannot teach.
    """
    shown = LinesInPictures()
    for number, (path, one) in enumerate(report.files):
        own = records.select(np.flatnonzero(records.sources == number))
        found = _probe(own, options, fonts)
        if problem := problem_of(path, one, found, max_faulty_lines):
            raise ValueError(problem)
        shown.merge(found)
    reasons = "; ".join(f"{reason}: {c.count}, first {c.example}" for reason, c in shown.counts().items())
    return f"in {shown.signs[LINES]} lines whose pictures' sizes were read {reasons}" if reasons else ""


def _probe(records: Records, options: DatasetConfig, fonts: FontTable) -> LinesInPictures:
    found = LinesInPictures()
    count = min(len(records), PROBED_PICTURES)
    probed = [records[int(index)] for index in np.linspace(0, len(records) - 1, count).round()] if count else []
    with ThreadPoolExecutor(_READERS) as readers:
        headers = list(readers.map(_header_of, probed))
    for record, header in zip(probed, headers, strict=True):
        if header is None:  # counted by reason when its sample is made
            found.unread += len(record.lines)
        else:
            found.add(record, header, options, fonts)
    return found


def _header_of(record: Record) -> ImageHeader | None:
    """The header of a record's picture; None where it cannot be read."""
    file = find_image(record)
    return None if file is None else read_header(file.path)


def problem_of(path: Path | str, report: LoadReport, found: LinesInPictures, max_faulty_lines: float) -> str:
    """Why the file cannot teach, in one line; empty if it can. report: of this file alone."""
    if not report.pictures:
        return f"{path}: no usable item in its list of {report.items}{_reasons(report.skipped)}"
    total = report.lines + sum(count for reason, count in report.skipped.items() if reason.startswith("lines: "))
    if not total:
        return f"{path}: {_without_lines(report)}; without lines of text there is nothing to learn"
    loaded = {r: CountWithExample(n, report.examples[r]) for r, n in report.skipped.items() if is_faulty_line(r)}
    placed = {r: one for r, one in found.counts().items() if is_faulty_line(r)}
    usable = float(report.lines)
    if placed:  # what the pictures show that were looked at holds for the others too
        usable *= 1 - sum(one.count for one in placed.values()) / found.looked_at
    share = (sum(one.count for one in loaded.values()) + report.lines - usable) / total
    if share > max_faulty_lines or (not round(usable) and share):
        guessed = "about " if placed and found.looked_at < report.lines else ""
        return f"{path}: {guessed}{round(usable)} of {total} lines can be used; " + _worst(
            path, loaded | placed, found, max_faulty_lines if round(usable) else None
        )
    if not report.lines:
        return f"{path}: 0 of {total} lines can be used{_reasons(report.skipped)}"
    wrong = suspicion(found.signs)
    if wrong is None or max_faulty_lines == 1:
        return ""
    left = usable * (1 - wrong.count / found.looked_at)
    return (
        f"{path}: {round(left)} of {total} lines can be used; {wrong.message} ({wrong.count} lines, first "
        f"{found.examples[wrong.sign]}); {FAULTY_LINES}=1 takes the file as it is"
    )


def _worst(
    path: Path | str, faults: Mapping[str, CountWithExample], found: LinesInPictures, max_faulty_lines: float | None
) -> str:
    """The most frequent fault with what would work, and how often others occur; with the limit, if there is one."""
    (reason, worst), *others = sorted(faults.items(), key=lambda fault: -fault[1].count)
    remedies = [limit_of(reason).why]
    if reason.startswith("polygons: "):
        remedies.append(exif_advice(found.orientation_fits, found.exif) or remedy_outside(found.signs))
    counted = "".join(f"; {other}: {one.count}" for other, one in others)
    limit = "" if max_faulty_lines is None else f"; {FAULTY_LINES}={max_faulty_lines:g} is the greatest share"
    example = worst.example.removeprefix(f"{path}: ")
    return f"{'; '.join(filter(None, remedies))} ({reason}: {worst.count}, first {example}{counted}){limit}"


def _without_lines(report: LoadReport) -> str:
    if report.annotated:
        return f"the field 'annotations' is empty in all of its {report.items} items"
    fields = escape_unprintable(", ".join(report.item_fields[:8]))
    return f"no item has the field 'annotations' ({report.items} items, the first one has {fields})"


def _reasons(skipped: Mapping[str, int]) -> str:
    found = ", ".join(f"{reason}: {count}" for reason, count in skipped.items())
    return f" ({found})" if found else ""
