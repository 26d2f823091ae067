"""What the page takes from a browser, and what not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.page import limits
from launch.page.faults import PageFault
from launch.page.limits import Uploads


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    (tmp_path / "incoming").mkdir()
    return Uploads(tmp_path / "kept", tmp_path / "incoming")


def picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, **options: object) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def refused(uploads: Uploads, path: Path | str) -> str:
    with pytest.raises(PageFault) as fault:
        uploads.take(str(path), "places")
    assert fault.value.message.field == "places"
    return fault.value.message.key


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_picture_is_kept_and_what_was_sent_is_removed(uploads: Uploads, tmp_path: Path, suffix: str) -> None:
    sent = picture(tmp_path / "incoming" / f"a.{suffix}")
    content = sent.read_bytes()
    name = uploads.take(str(sent), "places")
    assert name.endswith(f".{suffix}") and uploads.path(name).read_bytes() == content
    assert uploads.size(name) == (40, 30)
    assert not sent.exists()
    assert uploads.add(uploads.path(name)) == name


def test_the_size_is_that_of_the_picture_as_it_is_seen(uploads: Uploads, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    name = uploads.take(str(picture(tmp_path / "incoming" / "a.jpg", exif=exif.tobytes())), "places")
    assert uploads.size(name) == (30, 40)


def test_what_is_no_picture_is_refused_and_removed(uploads: Uploads, tmp_path: Path) -> None:
    for name, content in (("a.png", b"nonsense"), ("b.png", b""), ("c.svg", b"<svg/>"), ("d.gif", b"GIF89a")):
        sent = tmp_path / "incoming" / name
        sent.write_bytes(content)
        assert refused(uploads, sent) == "upload_unreadable"
        assert not sent.exists()
    cut = picture(tmp_path / "incoming" / "cut.png")
    cut.write_bytes(cut.read_bytes()[:300])
    assert refused(uploads, cut) == "upload_unreadable"
    assert not list(uploads.folder.iterdir())


def test_what_is_too_large_is_refused(uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(uploads, "") == "upload_large"  # the server has refused it
    assert refused(uploads, picture(tmp_path / "incoming" / "a.png", (9000, 1))) == "upload_pixels"
    assert refused(uploads, picture(tmp_path / "incoming" / "a.png", (15, 15))) == "upload_tiny"
    monkeypatch.setattr(limits, "UPLOAD_BYTES", 100)
    assert refused(uploads, picture(tmp_path / "incoming" / "a.png")) == "upload_large"


def test_nothing_else_on_the_disk_is_read_or_removed(uploads: Uploads, tmp_path: Path) -> None:
    mine = picture(tmp_path / "mine.png")
    (tmp_path / "incoming" / "link.png").symlink_to(mine)
    for path in (mine, tmp_path / "incoming" / ".." / "mine.png", tmp_path / "incoming" / "link.png", tmp_path):
        assert refused(uploads, path) == "upload_unreadable"
    assert mine.is_file()


@pytest.mark.parametrize("name", ["../mine.png", "/etc/passwd", "a.png", "", "0" * 24 + ".png", "0" * 24 + ".txt"])
def test_a_name_that_was_not_given_is_refused(uploads: Uploads, name: str) -> None:
    with pytest.raises(PageFault, match="upload_gone"):
        uploads.path(name)


def test_only_the_last_uploads_are_kept(uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEPT_UPLOADS", 2)
    names = []
    for seed in range(4):
        names.append(uploads.take(str(picture(tmp_path / "incoming" / "a.png", seed=seed)), "places"))
        os.utime(uploads.path(names[-1]), (seed, seed))
    assert {file.name for file in uploads.folder.iterdir()} == set(names[-2:])
