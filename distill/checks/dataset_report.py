"""The report of a dataset check: its values, whether the dataset is usable, and a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from anytext2.data.image_formats import readable_formats
from distill.data.judgement import CountWithExample
from distill.data.picture_files import exif_advice

_EXAMPLE = 300  # characters of an example that a table shows; the JSON has all of them


@dataclass(frozen=True)
class Colors:
    """Colours in the annotations. told: lines with a colour. Of these, the mean in 0..255, shares of black, white."""

    told: int
    share_told: float
    mean: tuple[float, float, float] | None
    share_black: float
    share_white: float


@dataclass(frozen=True)
class Spread:
    """The distribution of a count: mean, maximum (most), and the share above `limit`."""

    mean: float
    most: int
    limit: int
    share_above: float


@dataclass(frozen=True)
class Sizes:
    """Sizes of the readable pictures, 'width x height' in pixels; by area where one is smallest or largest."""

    different: int
    smallest: str
    largest: str
    most_frequent: dict[str, int]


@dataclass(frozen=True)
class Uncovered:
    """Characters that no font of their line's language can draw."""

    total: int
    different: int
    most_frequent: dict[str, CountWithExample]


@dataclass(frozen=True)
class SourceCheck:
    """What was found in one annotation file.

    error: why the file could not be read, problem: why it cannot teach; else empty. items: entries of its list. usable:
    items that loading kept. checked: usable items that were checked. readable: checked items that became a sample.
    faulty: samples that break a rule of `check_samples`. orientations, orientation_fits: pictures with an EXIF
    orientation, and whether their polygons lie inside the turned or the stored picture. exif: data.options.exif.
    left_out and the notes of lines are about all items, the rest about the checked ones; polygons and undrawable about
    the lines of readable pictures. Mappings are by reason or name. anytext2/data/limits.py says which counts have a
    limit, and why the others have none.
    """

    source: str
    error: str
    problem: str
    items: int
    usable: int
    checked: int
    readable: int
    faulty: int
    lines: int
    left_out: dict[str, CountWithExample]
    unreadable: dict[str, CountWithExample]
    audit: dict[str, CountWithExample]
    polygons: dict[str, CountWithExample]
    undrawable: dict[str, CountWithExample]
    uncovered: Uncovered
    languages: dict[str, int]
    colors: Colors
    text_lengths: Spread
    lines_per_picture: Spread
    pictures_without_lines: int
    sizes: Sizes
    formats: dict[str, int]
    orientations: dict[str, CountWithExample]
    orientation_fits: dict[str, CountWithExample]
    exif: str
    notes: dict[str, CountWithExample]


def reasons_unusable(check: SourceCheck, max_unreadable: float, max_findings: float) -> list[str]:
    """Why the source should not be trained on, one line each; empty if it can be.

    max_unreadable: share of the checked pictures that may be missing or corrupt; max_findings: share of them that may
    fail the audit.
    """
    if check.error:
        return [check.error]
    found = [check.problem] if check.problem else []
    if not check.checked:
        return found
    unreadable = sum(reason.count for reason in check.unreadable.values())
    if unreadable > max_unreadable * check.checked or unreadable == check.checked:
        found.append(
            f"{check.source}: {unreadable} of {check.checked} pictures cannot be read ({_reasons(check.unreadable)}), "
            f"as {next(iter(check.unreadable.values())).example}; --max-unreadable is {max_unreadable:g}"
        )
    if check.faulty > max_findings * check.checked:
        example = next(iter(check.audit.values())).example
        found.append(
            f"{check.source}: {check.faulty} of {check.checked} samples fail the audit ({_reasons(check.audit)}), as "
            f"{example}"
        )
    advice = _exif_advice(check, max_findings * check.checked)
    is_new = advice and advice not in check.problem
    return found + ([f"{check.source}: {advice}"] if is_new else [])


def _exif_advice(check: SourceCheck, most_wrong: float = 0) -> str:
    fits = {fit: found.count for fit, found in check.orientation_fits.items()}
    return exif_advice(fits, check.exif, most_wrong)


def _reasons(counted: Mapping[str, CountWithExample]) -> str:
    return ", ".join(f"{reason}: {found.count}" for reason, found in counted.items())


# --- the table ---


def format_report(check: SourceCheck) -> str:
    """The report as text: a label and its values, one a line."""
    if check.error:
        return f"{check.source}\n  cannot be used: {check.error}"
    rows = [(label, value) for label, values in _rows(check).items() for value in values]
    lines, before = [check.source], ""
    for label, value in rows:
        lines.append(f"  {label if label != before else '':<14}{value}")
        before = label
    return "\n".join(lines)


def _rows(check: SourceCheck) -> dict[str, list[str]]:
    lines, texts, colors, sizes = check.lines_per_picture, check.text_lengths, check.colors, check.sizes
    mean = "" if colors.mean is None else f"; mean ({', '.join(f'{value:.0f}' for value in colors.mean)})"
    uncovered = check.uncovered
    return {
        "items": [
            f"{check.items} in the file, {check.usable} usable, {check.checked} checked, {check.readable} readable"
        ],
        "left out": _listed(check.left_out),
        "unreadable": _listed(check.unreadable),
        "formats": _formats(check),
        "EXIF": _orientations(check),
        "notes": _listed(check.notes),
        "sizes": [f"{n} pictures of {size}" for size, n in sizes.most_frequent.items()]
        + ([f"{sizes.different} different, from {sizes.smallest} to {sizes.largest}"] if sizes.different > 1 else []),
        "lines": [
            f"{check.lines}: {lines.mean:.1f} a picture, {lines.most} at most; {lines.share_above:.1%} of the pictures "
            f"have more than {lines.limit} (that many are learned at a time); {check.pictures_without_lines} have none"
        ],
        "texts": [
            f"{texts.mean:.1f} characters long, {texts.most} at most; {texts.share_above:.1%} are longer than "
            f"{texts.limit} and get cut"
        ],
        "languages": [", ".join(f"{name} {count}" for name, count in check.languages.items()) or "none"],
        "colours": [
            f"{colors.told} lines ({colors.share_told:.1%}) tell theirs{mean}; {colors.share_black:.1%} black, "
            f"{colors.share_white:.1%} white"
        ],
        "polygons": _listed(check.polygons, none="all inside their pictures"),
        "no glyph": [
            f"{uncovered.total} characters, {uncovered.different} different",
            *_listed(uncovered.most_frequent),
            *(_listed(check.undrawable) if check.undrawable else []),
        ]
        if uncovered.total
        else ["fonts have all characters"],
        "audit": [f"{check.faulty} samples break a rule", *_listed(check.audit)] if check.faulty else ["no findings"],
    }


def _formats(check: SourceCheck) -> list[str]:
    rows = [", ".join(f"{name} {count}" for name, count in check.formats.items()) or "none"]
    return rows + ([f"read are {readable_formats()}"] if check.unreadable else [])


def _orientations(check: SourceCheck) -> list[str]:
    if not check.orientations:
        return ["no picture has an orientation"]
    used = "turned by it" if check.exif == "apply" else "not turned by it, as in the reference"
    rows = [*_listed(check.orientations), *_listed(check.orientation_fits), f"{used} (data.options.exif={check.exif})"]
    return rows + [_exif_advice(check) or "launch/show_dataset.py shows where the boxes lie"]


def _listed(counted: Mapping[str, CountWithExample], none: str = "none") -> list[str]:
    return [f"{reason}: {found.count}{_as_in(found.example)}" for reason, found in counted.items()] or [none]


def _as_in(example: str) -> str:
    short = example if len(example) <= _EXAMPLE else example[: _EXAMPLE - 1] + "…"
    return f", as {short}" if short else ""
