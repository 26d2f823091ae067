"""EXIF orientation against the polygons, and the look at some pictures when a run starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anytext2.core.batch import Record, TextLine
from anytext2.data.image_file import ImageHeader
from distill.data.picture_files import (
    FITS_EITHER,
    FITS_STORED,
    FITS_TURNED,
    exif_advice,
    orientation_fit,
    probe_pictures,
)
from tests.helpers import faulty_data as data


def record(*boxes: tuple[int, int, int, int], name: str = "a.jpg", root: Path = Path()) -> Record:
    lines = (TextLine("Open", np.array(data.upright(*box), np.float32), "Latin", None) for box in boxes)
    return Record(root / name, name, "", tuple(lines), ())


@pytest.mark.parametrize(
    ("orientation", "boxes", "expected"),
    [
        (6, [(10, 130, 90, 180)], FITS_TURNED),
        (8, [(10, 130, 90, 180), (10, 10, 90, 50)], FITS_TURNED),
        (6, [(110, 10, 190, 90)], FITS_STORED),
        (5, [(10, 10, 90, 50)], FITS_EITHER),
        (6, [(0, 0, 101, 201)], FITS_TURNED),  # rounded to one pixel beyond the border
        (6, [(300, 10, 350, 50)], FITS_EITHER),
        (6, [], FITS_EITHER),
        (3, [(110, 10, 190, 90)], FITS_EITHER),  # the size is the same
    ],
)
def test_polygons_tell_which_picture_they_were_drawn_on(
    orientation: int, boxes: list[tuple[int, int, int, int]], expected: str
) -> None:
    header = ImageHeader("JPEG", (100, 200), orientation)  # 200 wide, 100 high; turned it is 100 wide
    assert orientation_fit(record(*boxes), header) == expected


def test_advice_follows_the_majority() -> None:
    assert exif_advice({}, "ignore") == exif_advice({FITS_EITHER: 9}, "ignore") == ""
    assert exif_advice({FITS_TURNED: 1, FITS_EITHER: 9}, "ignore").endswith("set data.options.exif=apply")
    assert exif_advice({FITS_TURNED: 1, FITS_STORED: 1}, "ignore") == ""
    assert exif_advice({FITS_TURNED: 1}, "ignore", most_wrong=1) == exif_advice({FITS_TURNED: 3}, "apply") == ""
    assert exif_advice({FITS_STORED: 2, FITS_TURNED: 1}, "apply").endswith("set data.options.exif=ignore")


def test_a_run_warns_of_what_is_unusual(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "shop").mkdir()
    for name in ("plain.jpg", "shop/1.jpg"):
        Image.new("RGB", (200, 100)).save(tmp_path / name)
    plain = record((0, 0, 50, 50), name="plain.jpg", root=tmp_path)
    turned = record((0, 110, 50, 190), name="turned.jpg", root=tmp_path)
    spelled = record((0, 0, 50, 50), name="shop\\1.jpg", root=tmp_path)
    missing = record((0, 0, 50, 50), name="Plain.JPG", root=tmp_path)
    assert probe_pictures([plain, plain], "ignore") == probe_pictures([], "apply") == []
    assert probe_pictures([plain, spelled], "ignore") == [
        "1 of 2 pictures were found only under another spelling of their name (/ for \\)"
    ]
    (ignored,) = probe_pictures([plain, turned, turned], "ignore")
    assert ignored.startswith("the EXIF orientation of 2 of 3 pictures is ignored; ") and ignored.endswith("exif=apply")
    (applied,) = probe_pictures([plain, turned], "apply")
    assert "is applied; launch/show_dataset.py" in applied
    (absent,) = probe_pictures([*[plain] * 9, missing], "ignore", most=2)
    assert absent.startswith("1 of 2 probed pictures are missing; the first: no 'Plain.JPG' in ")
    assert "nearest there: 'plain.jpg'" in absent
