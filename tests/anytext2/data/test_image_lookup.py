"""Picture files whose names are spelled otherwise than in the annotations, and what is said of missing ones."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anytext2.core.batch import Record
from anytext2.data.annotations import load_records
from anytext2.data.dataset import SampleError, load_image
from anytext2.data.image_lookup import FoundImage, describe_missing, find_image, nearest_name, parts_below
from tests.helpers import faulty_data as data


def _record(root: Path, name: str) -> Record:
    return Record(root / name, name, "", (), ())


def _files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "white").save(path)
    return root


NFC, NFD = unicodedata.normalize("NFC", "Café_ガム_한글.png"), unicodedata.normalize("NFD", "Café_ガム_한글.png")


@pytest.mark.parametrize(
    ("on_disk", "name", "spelling"),
    [
        ("a/b.png", "a/b.png", ""),
        ("a/b.png", "a\\b.png", "/ for \\"),
        ("a/b.png", ".\\a\\b.png", "/ for \\"),
        ("a/b.png", "a/c\\..\\b.png", "/ for \\"),
        ("a/b.png", "missing/../a/b.png", "no . or .. in it"),
        ("a\\b.png", "a\\b.png", ""),
        (NFD, NFC, "Unicode form NFD"),
        (NFC, NFD, "Unicode form NFC"),
        (f"{NFD}/x/{NFC}", f"{NFC}\\x\\{NFD}", "/ for \\ and Unicode form NFD and Unicode form NFC"),
    ],
)
def test_other_spellings_are_found(tmp_path: Path, on_disk: str, name: str, spelling: str) -> None:
    record = _record(_files(tmp_path / "imgs", on_disk), name)
    found = find_image(record)
    assert found is not None and found.spelling == spelling
    assert found.path.samefile(tmp_path / "imgs" / on_disk)
    assert load_image(record).shape == (4, 4, 3)


def test_the_name_as_it_is_comes_first(tmp_path: Path) -> None:
    root = _files(tmp_path, "a/b.png")
    Image.new("RGB", (8, 8)).save(root / "a\\b.png")
    assert load_image(_record(root, "a\\b.png")).shape == (8, 8, 3)
    Image.new("RGB", (8, 8)).save(root / NFC)
    Image.new("RGB", (4, 4)).save(root / NFD)
    assert load_image(_record(root, NFD)).shape == (4, 4, 3)


def test_data_root_may_be_spelled_for_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _files(tmp_path / "set" / "imgs", "b.png")
    root = tmp_path / "set\\imgs"
    found = find_image(_record(root, "b.png"))
    assert found is not None and found.spelling == "/ for \\ in data_root"
    said = describe_missing(_record(root, "B.PNG"))
    assert said == f"no 'B.PNG' in {tmp_path / 'set' / 'imgs'}, nearest there: 'b.png'; data_root is {root}"
    monkeypatch.chdir(tmp_path)
    assert find_image(_record(Path("set\\imgs"), "b.png")) == FoundImage(Path("set/imgs/b.png"), found.spelling)


@pytest.mark.parametrize(
    "name", ["..\\secret.png", "a\\..\\..\\secret.png", "\\secret.png", "C:\\secret.png", "a/..\\..\\secret.png"]
)
def test_nothing_outside_data_root_is_read(tmp_path: Path, name: str) -> None:
    """Such names are refused when the file is read; the search does not follow them, either."""
    root = _files(tmp_path, "secret.png", "imgs/a/b.png") / "imgs"
    assert parts_below(name) is None and find_image(_record(root, name)) is None
    with pytest.raises(SampleError, match="image missing"):
        load_image(_record(root, name))
    source = data.write(tmp_path, [*data.sound_items(2), data.item("missing.png")])
    text = source.read_text(encoding="utf-8").replace("missing.png", name.replace("\\", "\\\\"))
    source.write_text(text, encoding="utf-8")
    records, report = load_records(source, max_faulty=1.0)
    assert len(records) == 2 and report.skipped == {"pictures: name outside data_root": 1}


@pytest.mark.parametrize(
    ("on_disk", "name", "near"),
    [
        ("IMG_0001.JPG", "img_0001.jpg", "IMG_0001.JPG"),
        ("0001.jpeg", "0001.jpg", "0001.jpeg"),
        ("shop_001.png", "shop_1.png", "shop_001.png"),
        ("my file.png", "my%20file.png", "my file.png"),
        ("a.png", "a.png\r", "a.png"),
        ("招牌.png", "招牌.png".encode().decode("cp437"), "招牌.png"),
        ("Café.png", "Café.png".encode().decode("cp1252"), "Café.png"),
        ("招牌.png".encode("gbk").decode("cp437"), "招牌.png", "招牌.png".encode("gbk").decode("cp437")),
        ("看板.png".encode("cp932").decode("cp437"), "看板.png", "看板.png".encode("cp932").decode("cp437")),
    ],
)
def test_a_missing_picture_comes_with_the_nearest_name(tmp_path: Path, on_disk: str, name: str, near: str) -> None:
    """Another case, another ending, or a wrong encoding here or when the archive was unpacked: suggested, not read."""
    root = _files(tmp_path, f"imgs/{on_disk}", "imgs/zzz.png") / "imgs"
    with pytest.raises(SampleError) as error:
        load_image(_record(root, name))
    message = str(error.value)
    assert error.value.reason == "image missing" and "\n" not in message.replace(name, "")
    for words in (f"no {name!r} in {root}", f"nearest there: {near!r}", f"data_root is {root}"):
        assert words in message


def test_names_of_a_disk_that_is_not_utf8_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "招牌.png".encode("gbk").decode("utf-8", "surrogateescape")).touch()
    assert nearest_name(tmp_path, "招牌.png").encode("utf-8", "surrogateescape") == "招牌.png".encode("gbk")
    assert describe_missing(_record(tmp_path, "招牌.png")).encode(), "can be printed"


def test_what_is_missing_may_be_a_folder(tmp_path: Path) -> None:
    _files(tmp_path / "imgs", "Shop/1.png", "other.png")
    assert f"no 'shop' in {tmp_path / 'imgs'}, nearest there: 'Shop'" in describe_missing(
        _record(tmp_path / "imgs", "shop\\1.png")
    )
    for root in ("img", "D:\\data\\imgs"):
        said = describe_missing(_record(tmp_path / root, "1.png"))
        assert said == f"data_root {tmp_path / root} is no folder, nearest in {tmp_path}: 'imgs'"
    assert "none of its 2 names is similar" in describe_missing(_record(tmp_path / "imgs", "0123456789.webp"))


def test_a_record_whose_file_lies_elsewhere(tmp_path: Path) -> None:
    root = _files(tmp_path, NFD)
    record = replace(_record(root, "x"), image_path=root / NFC)
    found = find_image(record)
    assert found is not None and found.spelling == "Unicode form NFD"
    assert load_image(record).dtype == np.uint8


def test_the_nearest_name_in_a_large_folder(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"picture_{number:05d}.jpg").touch()
    assert nearest_name(tmp_path, "picture_00517.png") == "picture_00517.jpg"
    assert nearest_name(tmp_path, "picture_0517.jpg") == "picture_00517.jpg"
