"""What the headers of picture files say: formats, EXIF orientation and whether the polygons fit it, spelling of names.

Polygons may have been drawn on the pixels as stored or on the picture as viewers turn it. Only the polygons tell which:
a quarter turn exchanges width and height, so that they often lie inside only one of the two pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from anytext2.core.batch import Record
from anytext2.data.geometry import Size
from anytext2.data.image_file import ImageHeader, read_header
from anytext2.data.image_lookup import describe_missing, find_image

FITS_TURNED = "boxes fit only the turned picture"
FITS_STORED = "boxes fit only the picture as stored"
FITS_EITHER = "boxes fit the turned picture as well as the stored one"

PROBED_PICTURES = 256
"""Pictures whose headers are read when a run starts. launch/check_dataset.py reads all of them."""

_EDGE = 1.0  # pixels: a corner on the border, or rounded to just beyond it, is inside
_READERS = 16  # reading the beginning of a file is waiting for the disk


def orientation_fit(record: Record, header: ImageHeader) -> str:
    """Which of its two pictures a record's polygons lie in: FITS_TURNED, FITS_STORED or FITS_EITHER."""
    turned, stored = (_count_inside(record, header.size(exif)) for exif in ("apply", "ignore"))
    return FITS_EITHER if turned == stored else FITS_TURNED if turned > stored else FITS_STORED


def _count_inside(record: Record, size: Size) -> int:
    polygons = [*(line.polygon for line in record.lines), *record.ignored_polygons]
    limit = np.array([size[1], size[0]], np.float32) + _EDGE
    return sum(bool(polygon.min() >= -_EDGE and (polygon <= limit).all()) for polygon in polygons)


def exif_advice(fits: Mapping[str, int], exif: str, most_wrong: float = 0) -> str:
    """What to do if more pictures contradict `data.options.exif` than confirm it; empty otherwise.

    fits: the number of pictures with an orientation, by `orientation_fit`. most_wrong: pictures that may contradict it.
    """
    turned, stored = fits.get(FITS_TURNED, 0), fits.get(FITS_STORED, 0)
    wrong, right = (turned, stored) if exif == "ignore" else (stored, turned)
    if wrong <= max(right, most_wrong):
        return ""
    fit, other = (FITS_TURNED, "apply") if exif == "ignore" else (FITS_STORED, "ignore")
    total = sum(fits.values())
    return f"{fit} in {wrong} of {total} pictures with an EXIF orientation; set data.options.exif={other}"


# --- a look when a run starts ---


@dataclass(frozen=True)
class _PictureFile:
    """What was found for one record. missing: where it was looked for, empty if it is there."""

    header: ImageHeader | None
    spelling: str
    missing: str
    fit: str


def probe_pictures(records: Sequence[Record], exif: str, most: int = PROBED_PICTURES) -> list[str]:
    """Warnings about up to `most` pictures, evenly spread, one line each; empty if nothing is unusual.

    exif: data.options.exif.
    """
    indices = np.unique(np.linspace(0, len(records) - 1, min(len(records), most)).round().astype(np.int64))
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(_look_at, (records[int(index)] for index in indices)))
    among = f"of {len(found)} pictures" if len(found) == len(records) else f"of {len(found)} probed pictures"
    warnings = []
    missing = [one.missing for one in found if one.missing]
    if missing:
        warnings.append(f"{len(missing)} {among} are missing; the first: {missing[0]}")
    spellings = Counter(one.spelling for one in found if one.spelling)
    for spelling, count in spellings.most_common():
        warnings.append(f"{count} {among} were found only under another spelling of their name ({spelling})")
    orientations = [one.header.orientation for one in found if one.header is not None and one.header.orientation > 1]
    if orientations:
        fits = Counter(one.fit for one in found if one.fit)
        advice = exif_advice(fits, exif) or "launch/show_dataset.py shows where their boxes lie"
        state = "is applied" if exif == "apply" else "is ignored"
        warnings.append(f"the EXIF orientation of {len(orientations)} {among} {state}; {advice}")
    return warnings


def _look_at(record: Record) -> _PictureFile:
    file = find_image(record)
    if file is None:
        return _PictureFile(None, "", describe_missing(record), "")
    header = read_header(file.path)
    fit = orientation_fit(record, header) if header is not None and header.orientation > 1 else ""
    return _PictureFile(header, file.spelling, "", fit)
