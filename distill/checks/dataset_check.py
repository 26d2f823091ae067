"""Checks a dataset: every picture is decoded, made into a sample and checked by `check_batch`; everything is counted.

Counts are merged in the order of the pictures, so the report does not depend on the number of processes. No network is
needed.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from anytext2.core.batch import Record, Sample, collate
from anytext2.data.annotations import LoadReport, load_records
from anytext2.data.dataset import AnyWordDataset, SampleError, missing_glyphs
from anytext2.data.geometry import is_outside_image, scale_record
from anytext2.data.image_file import read_header
from anytext2.data.image_lookup import find_image
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from distill.checks.batch_checks import Finding, check_batch
from distill.checks.dataset_report import Colors, CountWithExample, Sizes, SourceCheck, Spread, Uncovered
from distill.data.loader import limit_threads
from distill.data.picture_files import orientation_fit
from distill.viz.contact_sheet import evenly_spaced_indices

DARK, LIGHT = 30, 225
"""A colour counts as black where no channel is above DARK, as white where none is below LIGHT."""

NEARLY_BLACK = 16
"""A picture without any value above it is counted: it may have 12 bits in a file of 16, or wrong colours."""

SAMPLE_ERROR = "sample"
"""The rule that every readable picture can be made into a sample."""

PARTLY_OUTSIDE, WHOLLY_OUTSIDE = "partly outside the picture", "wholly outside the picture (line left out)"

_CHUNK = 16  # pictures that a process does at a time
_EDGE = 1.0  # pixels: a corner on the border, or rounded to just beyond it, is no fault


def check_source(
    source: Path,
    options: DatasetConfig,
    seed: int = 0,
    workers: int = 0,
    limit: int | None = None,
    max_faulty: float = 0.01,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SourceCheck:
    """Checks the pictures of an annotation file, in `workers` processes (0: this one).

    limit: only so many pictures, spread evenly over the file; max_faulty: share of the file's items that may have a
    fault, as a run takes it; progress: called with how many pictures of how many are done.
    """
    try:
        records, report = load_records(source, options.wm_threshold, options.tells_watermarks, max_faulty=max_faulty)
    except ValueError as error:
        return summarize(source, options, DatasetCounts(), LoadReport(0, 0), str(error))
    dataset = AnyWordDataset(records, options, seed, load_font_table())
    indices, found = evenly_spaced_indices(len(dataset), len(dataset) if limit is None else limit), DatasetCounts()
    for counts in _count_chunks(dataset, indices, workers):
        found.add(counts)
        progress(found.pictures["checked"], len(indices))
    return summarize(source, options, found, report)


# --- counting ---


@dataclass
class DatasetCounts:
    """What was counted over some pictures. `examples`: by field and reason, the first place."""

    pictures: Counter[str] = field(default_factory=Counter)  # checked, readable, faulty
    unreadable: Counter[str] = field(default_factory=Counter)
    audit: Counter[str] = field(default_factory=Counter)
    polygons: Counter[str] = field(default_factory=Counter)
    uncovered: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    colors: Counter[str] = field(default_factory=Counter)  # told (lines), black, white; sums of red, green, blue
    text_lengths: Counter[int] = field(default_factory=Counter)
    lines_per_picture: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    orientations: Counter[str] = field(default_factory=Counter)
    orientation_fits: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, other: DatasetCounts) -> None:
        """Adds what was counted over the pictures that come next."""
        for one in fields(self):
            if one.name != "examples":
                getattr(self, one.name).update(getattr(other, one.name))
        for key, example in other.examples.items():
            self.examples.setdefault(key, example)

    def count(self, name: str, reason: str, example: str, count: int = 1) -> None:
        """Adds to the field `name`; the first example of each reason is kept."""
        getattr(self, name)[reason] += count
        self.examples.setdefault((name, reason), escape_unprintable(example))

    def most_common(self, name: str) -> dict[str, CountWithExample]:
        """The field `name`, most frequent first, with examples."""
        found: Counter[str] = getattr(self, name)
        return {reason: CountWithExample(n, self.examples[name, reason]) for reason, n in found.most_common()}


def count_samples(dataset: AnyWordDataset, indices: Iterable[int]) -> DatasetCounts:
    """Counts over the given pictures of a dataset, as they are in its first epoch."""
    found = DatasetCounts()
    for index in indices:
        record = dataset.records[index]
        found.pictures["checked"] += 1
        _count_lines(found, record, dataset)
        sample = _sample(found, dataset, index, record)
        if sample is None:
            continue
        found.pictures["readable"] += 1
        size = _count_picture(found, record, sample, dataset.config.exif)
        found.sizes[size] += 1
        _count_polygons(found, record, size, dataset.config.resolution)
        _count_findings(found, check_batch(collate([sample]).normalized(), dataset.config.like_reference))
    return found


def _sample(found: DatasetCounts, dataset: AnyWordDataset, index: int, record: Record) -> Sample | None:
    try:
        return dataset.sample(index, 0)
    except SampleError as error:
        found.count("unreadable", error.reason, str(error))
    except (ValueError, ArithmeticError, LookupError, cv2.error) as error:
        # Training would end here with a traceback. The check reports it and continues.
        _count_findings(found, [Finding(SAMPLE_ERROR, record.name, f"cannot be made: {type(error).__name__}: {error}")])
    return None


def _count_picture(found: DatasetCounts, record: Record, sample: Sample, exif: str) -> tuple[int, int]:
    """Counts what is particular about a picture that was read a moment ago; returns its width and height."""
    file = find_image(record)
    header = None if file is None else read_header(file.path)
    assert file is not None and header is not None, f"{record.image_path} was read a moment ago"
    found.count("formats", header.kind, record.name)
    if file.spelling:
        found.count("notes", f"found under another spelling of its name ({file.spelling})", record.name)
    if header.orientation > 1:
        found.count("orientations", f"orientation {header.orientation}", record.name)
        found.count("orientation_fits", orientation_fit(record, header), record.name)
    if int(sample.image.max()) <= NEARLY_BLACK:
        found.count("notes", f"nearly black, no value above {NEARLY_BLACK} of 255", f"{record.name}, {header.kind}")
    height, width = header.size(exif)
    return width, height


def _count_findings(found: DatasetCounts, findings: list[Finding]) -> None:
    found.pictures["faulty"] += bool(findings)
    for finding in findings:
        found.count("audit", finding.check, f"{finding.where}: {finding.message}")


def _count_lines(found: DatasetCounts, record: Record, dataset: AnyWordDataset) -> None:
    found.lines_per_picture[len(record.lines)] += 1
    for line in record.lines:
        found.languages[line.language] += 1
        found.text_lengths[len(line.text)] += 1
        if line.color is not None:
            black, white = max(line.color) <= DARK, min(line.color) >= LIGHT
            found.colors.update(told=1, black=int(black), white=int(white))
            found.colors.update(dict(zip(("red", "green", "blue"), line.color, strict=True)))
    for char, count in missing_glyphs([record], dataset.fonts).items():
        text = next(line.text for line in record.lines if char in line.text)
        found.count("uncovered", char, f"{record.name}: {text!r}", count)


def _count_polygons(found: DatasetCounts, record: Record, size: tuple[int, int], side: int) -> None:
    """size: width and height of the file; side: of the sample, which has only lines that it shows something of."""
    scaled = scale_record(record, (size[1], size[0]), (side, side))
    for line, seen in zip(record.lines, scaled.lines, strict=True):
        beyond = np.maximum(-line.polygon, line.polygon - np.array(size, np.float32)).max()
        if beyond > _EDGE:
            kind = WHOLLY_OUTSIDE if is_outside_image(seen.polygon, (side, side)) else PARTLY_OUTSIDE
            corners = ", ".join(f"({x:g}, {y:g})" for x, y in line.polygon.tolist())
            example = f"{record.name}, {size[0]} x {size[1]}: {line.text!r} at {corners}"
            found.count("polygons", kind, example)


def escape_unprintable(text: str) -> str:
    """The text with everything that is not printable (line breaks, terminal codes, half surrogates) written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- many processes ---


class _Chunks(Dataset[DatasetCounts]):
    """Some pictures of a dataset, counted in chunks."""

    def __init__(self, dataset: AnyWordDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return -(-len(self.indices) // _CHUNK)

    def __getitem__(self, chunk: int) -> DatasetCounts:
        return count_samples(self.dataset, self.indices[chunk * _CHUNK : (chunk + 1) * _CHUNK])


def _count_chunks(dataset: AnyWordDataset, indices: Sequence[int], workers: int) -> Iterator[DatasetCounts]:
    """The counts of all chunks, in order."""
    yield from DataLoader(
        _Chunks(dataset, indices),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    limit_threads(worker)


def _unchanged(part: Any) -> Any:
    return part


# --- from counts to the report ---


def summarize(
    source: Path, options: DatasetConfig, found: DatasetCounts, report: LoadReport, error: str = ""
) -> SourceCheck:
    """Shares and means of what was counted. error: why the file could not be used at all."""
    beyond = sum(count for reason, count in report.skipped.items() if reason.startswith("pictures:"))
    uncovered = {
        f"U+{ord(char):04X} {escape_unprintable(char)}": n for char, n in found.most_common("uncovered").items()
    }
    return SourceCheck(
        source=str(source),
        error=error,
        items=report.pictures + beyond,
        usable=report.pictures,
        checked=found.pictures["checked"],
        readable=found.pictures["readable"],
        faulty=found.pictures["faulty"],
        lines=found.text_lengths.total(),
        left_out={
            r: CountWithExample(n, escape_unprintable(report.examples.get(r, "")))
            for r, n in sorted(report.skipped.items())
        },
        unreadable=found.most_common("unreadable"),
        audit=found.most_common("audit"),
        polygons=found.most_common("polygons"),
        uncovered=Uncovered(found.uncovered.total(), len(uncovered), dict(list(uncovered.items())[:10])),
        languages={escape_unprintable(language): count for language, count in found.languages.most_common()},
        colors=_colors(found),
        text_lengths=_spread(found.text_lengths, options.max_chars),
        lines_per_picture=_spread(found.lines_per_picture, options.max_lines),
        pictures_without_lines=found.lines_per_picture[0],
        sizes=_sizes(found.sizes),
        formats=dict(found.formats.most_common()),
        orientations=found.most_common("orientations"),
        orientation_fits=found.most_common("orientation_fits"),
        exif=options.exif,
        notes={note: CountWithExample(n, "") for note, n in sorted(report.notes.items())} | found.most_common("notes"),
    )


def _colors(found: DatasetCounts) -> Colors:
    counts, told = found.colors, found.colors["told"]
    mean = None
    if told:
        red, green, blue = (round(counts[channel] / told, 1) for channel in ("red", "green", "blue"))
        mean = (red, green, blue)
    lines = found.text_lengths.total()
    return Colors(told, _share(told, lines), mean, _share(counts["black"], told), _share(counts["white"], told))


def _spread(values: Counter[int], limit: int) -> Spread:
    above = sum(count for value, count in values.items() if value > limit)
    total = sum(value * count for value, count in values.items())
    return Spread(_share(total, values.total()), max(values, default=0), limit, _share(above, values.total()))


def _sizes(sizes: Counter[tuple[int, int]]) -> Sizes:
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    names = [f"{width} x {height}" for width, height in by_area]
    most = {f"{width} x {height}": count for (width, height), count in sizes.most_common(5)}
    return Sizes(len(sizes), names[0] if names else "", names[-1] if names else "", most)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
