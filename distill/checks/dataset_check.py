"""Checks a dataset: every picture is decoded, made into a sample and checked by `check_samples`; everything is counted.

Counts are merged in the order of the pictures, so the report does not depend on the number of processes. No network is
needed.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import DataLoader, Dataset

from anytext2.core.batch import Record, Sample, collate
from anytext2.data.annotations import LoadReport, escape_unprintable, load_records
from anytext2.data.dataset import AnyWordDataset, SampleError, missing_glyphs
from anytext2.data.image_file import ImageHeader, read_header
from anytext2.data.image_lookup import find_image
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from distill.checks.batch_checks import Finding, check_samples
from distill.checks.dataset_report import Colors, Sizes, SourceCheck, Spread, Uncovered
from distill.config.schema import DataConfig
from distill.data.judgement import CountWithExample, LinesInPictures, problem_of
from distill.data.loader import limit_threads
from distill.data.picture_files import orientation_fit
from distill.viz.contact_sheet import evenly_spaced_indices

DARK, LIGHT = 30, 225
"""A colour counts as black where no channel is above DARK, as white where none is below LIGHT."""

NEARLY_BLACK = 16
"""A picture without any value above it is counted: it may have 12 bits in a file of 16, or wrong colours."""

SAMPLE_ERROR = "sample"
"""The rule that every readable picture can be made into a sample."""

_CHUNK = 16  # pictures that a process does at a time


def check_source(
    source: Path,
    options: DatasetConfig,
    seed: int = 0,
    workers: int = 0,
    limit: int | None = None,
    max_faulty: float = DataConfig.max_faulty,
    max_faulty_lines: float = DataConfig.max_faulty_lines,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SourceCheck:
    """Checks the pictures of an annotation file, in `workers` processes (0: this one).

    limit: only so many pictures, spread evenly over the file; max_faulty, max_faulty_lines: shares of the
    file's items that may have a fault, and of its lines that may be left out for one, as a run takes them; progress:
    called with how many pictures of how many are done.
    """
    try:
        records, report = load_records(source, options.wm_threshold, options.tells_watermarks, max_faulty=max_faulty)
    except ValueError as error:
        return summarize(source, options, DatasetCounts(), LoadReport(0, 0), error=str(error))
    dataset = AnyWordDataset(records, options, seed, load_font_table())
    indices, found = evenly_spaced_indices(len(dataset), len(dataset) if limit is None else limit), DatasetCounts()
    for counts in _count_chunks(dataset, indices, workers):
        found.add(counts)
        progress(found.pictures["checked"], len(indices))
    _, own_report = report.files[0]
    problem = problem_of(source, own_report, found.lines, max_faulty_lines)
    return summarize(source, options, found, own_report, problem)


# --- counting ---


@dataclass
class DatasetCounts:
    """What was counted over some pictures. lines: in the readable ones. examples: by field and reason, the first."""

    pictures: Counter[str] = field(default_factory=Counter)  # checked, readable, faulty
    unreadable: Counter[str] = field(default_factory=Counter)
    audit: Counter[str] = field(default_factory=Counter)
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
    lines: LinesInPictures = field(default_factory=LinesInPictures)

    def add(self, other: DatasetCounts) -> None:
        """Adds what was counted over the pictures that come next."""
        for one in fields(self):
            if isinstance(own := getattr(self, one.name), Counter):
                own.update(getattr(other, one.name))
        self.lines.merge(other.lines)
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
            found.lines.unread += len(record.lines)
            continue
        found.pictures["readable"] += 1
        header = _count_picture(found, record, sample)
        height, width = header.size(dataset.config.exif)
        found.sizes[width, height] += 1
        found.lines.add(record, header, dataset.config, dataset.fonts)
        _count_findings(found, check_samples(collate([sample]).normalized(), dataset.config.like_reference))
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


def _count_picture(found: DatasetCounts, record: Record, sample: Sample) -> ImageHeader:
    """Counts what is particular about a picture that was read a moment ago; returns its header."""
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
    return header


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
    source: Path, options: DatasetConfig, found: DatasetCounts, report: LoadReport, problem: str = "", error: str = ""
) -> SourceCheck:
    """Shares and means of what was counted. problem: why the file cannot teach; error: why it could not be read."""
    uncovered = {
        f"U+{ord(char):04X} {escape_unprintable(char)}": n for char, n in found.most_common("uncovered").items()
    }
    return SourceCheck(
        source=str(source),
        error=error,
        problem=escape_unprintable(problem),
        items=report.items,
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
        polygons=_escaped(found.lines.counts("polygons: ")),
        undrawable=_escaped(found.lines.counts("texts: ")),
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


def _escaped(counts: Mapping[str, CountWithExample]) -> dict[str, CountWithExample]:
    """By the reason without its prefix, with printable examples."""
    return {
        reason.partition(": ")[2]: CountWithExample(one.count, escape_unprintable(one.example))
        for reason, one in counts.items()
    }


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
