"""What a dataset check says of picture files: formats, EXIF orientation, spelling of names, encodings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anytext2.data.image_formats import FORMATS
from launch.check_dataset import main
from tests.helpers import faulty_data as data

WIDE, HIGH = 128, 80
NOISE = np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)


def check(source: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and report of the check."""
    out = source.parent / "report.json"
    code = main([str(source), "resolution=96", "--workers", "0", "--out", str(out), *options])
    (report,) = json.loads(out.read_text(encoding="utf-8"))["sources"]
    return code, capsys.readouterr().out, report


def write(folder: Path, boxes: list[tuple[int, int, int, int]], save: Callable[[Path], None]) -> Path:
    """Four pictures by `save`, and two plain ones."""
    items = [data.item(f"{n}.jpg", *(data.line("Open", data.upright(*box)) for box in boxes)) for n in range(4)]
    source = data.write(folder, [*items, *data.sound_items(2)])
    for number in range(4):
        save(folder / "imgs" / f"{number}.jpg")
    return source


def with_orientation(orientation: int) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(NOISE).save(path, exif=exif)

    return save


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_turned_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int) -> None:
    """The field case: pictures of a phone, annotated upright."""
    source = write(tmp_path, [(5, 90, 75, 120)], with_orientation(orientation))
    code, output, report = check(source, capsys)
    last = output.splitlines()[-1]
    assert code == 1 and last.startswith("not usable: ")
    advice = (
        "boxes fit only the turned picture in 4 of 4 pictures with an EXIF orientation; set data.options.exif=apply"
    )
    assert last.count(advice) == 1
    assert report["orientations"] == {f"orientation {orientation}": {"count": 4, "example": "0.jpg"}}
    limits = ("--max-findings", "0.7", "data.max_faulty_lines=1")  # as many as the audit may find, and lines outside
    assert check(source, capsys, *limits)[0] == 0
    code, output, report = check(source, capsys, "exif=apply")
    assert code == 0 and f"orientation {orientation}: 4" in output and report["polygons"] == {}
    assert report["sizes"]["most_frequent"][f"{HIGH} x {WIDE}"] == 4


def test_boxes_of_the_stored_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, [(85, 5, 125, 75)], with_orientation(6))
    code, output, _ = check(source, capsys)
    assert code == 0 and "boxes fit only the picture as stored: 4, as 0.jpg" in output
    code, output, _ = check(source, capsys, "exif=apply")
    assert code == 1 and output.splitlines()[-1].count("set data.options.exif=ignore") == 1


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_boxes_that_fit_both_are_never_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], orientation: int
) -> None:
    code, output, _ = check(write(tmp_path, [(5, 5, 70, 60)], with_orientation(orientation)), capsys)
    assert code == 0
    for words in (
        f"orientation {orientation}: 4",
        "fit the turned picture as well",
        "data.options.exif=ignore",
        "show_dataset",
    ):
        assert words in output


def test_formats_are_counted_and_the_others_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The field case: AVIF and JPEG 2000 named .jpg, 12 bits in 16, CMYK, a cut PNG; and HEIC, an HTML page, a TIFF."""
    optional = [name for name in ("AVIF", "JPEG2000", "WEBP") if name in FORMATS]
    names = [*optional, "TIFF", "cmyk", "12bit", "cut", "heic", "html"]
    source = data.write(tmp_path, [data.item(f"{name}.jpg", data.line("Open")) for name in names])
    picture, imgs = Image.fromarray(NOISE), tmp_path / "imgs"
    for name in (*optional, "TIFF"):
        picture.save(imgs / f"{name}.jpg", name)
    picture.convert("CMYK").save(imgs / "cmyk.jpg")
    Image.fromarray(NOISE[..., 0].astype(np.uint16) * 16).save(imgs / "12bit.jpg", "PNG")
    picture.save(imgs / "cut.jpg", "PNG")
    (imgs / "cut.jpg").write_bytes((imgs / "cut.jpg").read_bytes()[:1000])
    (imgs / "heic.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (imgs / "html.jpg").write_text("<!DOCTYPE html><html><title>403</title></html>", encoding="utf-8")
    code, output, report = check(source, capsys)
    assert code == 1 and report["readable"] == len(names) - 3
    assert {reason: found["count"] for reason, found in report["unreadable"].items()} == {
        "image corrupt": 1,
        "image format not read: HEIC": 1,
        "image format not read: HTML page (a failed download)": 1,
    }
    assert "(PNG file, " in report["unreadable"]["image corrupt"]["example"]
    assert "read are JPEG, PNG, GIF, BMP, TIFF" in output
    assert report["formats"].items() >= {"TIFF": 1, "JPEG (CMYK)": 1, "PNG (16 bits gray)": 1}.items()
    assert sum(report["formats"].values()) == len(names) - 3
    ((note, example),) = report["notes"].items()
    assert note.startswith("nearly black") and example == {"count": 1, "example": "12bit.jpg, PNG (16 bits gray)"}


def test_other_spellings_are_used_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The field case: names written on Windows."""
    source = data.write(tmp_path, data.sound_items(3))
    (tmp_path / "imgs").rename(tmp_path / "shop")
    (tmp_path / "imgs").mkdir()
    (tmp_path / "shop").rename(tmp_path / "imgs" / "shop")
    source.write_text(source.read_text(encoding="utf-8").replace("sound_", "shop\\\\sound_"), encoding="utf-8")
    code, output, report = check(source, capsys)
    assert code == 0 and report["readable"] == 3
    assert "found under another spelling of its name (/ for \\): 3, as shop\\sound_0.png" in output


def test_missing_pictures_come_with_the_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data.write(tmp_path, data.sound_items(2))
    (tmp_path / "imgs" / "sound_1.png").rename(tmp_path / "imgs" / "Sound_1.PNG")
    code, output, _ = check(source, capsys)
    said = f"no 'sound_1.png' in {tmp_path / 'imgs'}, nearest there: 'Sound_1.PNG'; data_root is {tmp_path / 'imgs'}"
    assert code == 1 and said in output.splitlines()[-1]
    assert output.count("no 'sound_1.png' in") == 2, "in the table and in the verdict"


def test_a_file_in_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The field case: a JSON that PowerShell wrote."""
    source = data.write(tmp_path, data.sound_items(2))
    source.write_bytes(b"\xff\xfe" + source.read_text(encoding="utf-8").encode("utf-16-le"))
    code, output, _ = check(source, capsys)
    said = f"not usable: {source}: not UTF-8, it looks like UTF-16 LE; save the file as UTF-8"
    assert code == 1 and output.splitlines()[-1] == said
