"""Image files as pixels: depths, transparency, what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anytext2.data import image_file
from anytext2.data.image_file import ImageError, read_image

RAMP = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21  # 0..64491


def _png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has two bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == (48, 64, 3)
    np.testing.assert_array_equal(pixels, np.round(RAMP / 257).astype(np.uint8)[:, :, None].repeat(3, axis=2))


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0] = 200  # red under everything
    rgba[0, :, 3] = 0, 128, 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 2].tolist() == [200, 0, 0]
    np.testing.assert_allclose(pixels[0, 1], [227, 127, 127], atol=1)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "solid.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    palette.save(tmp_path / "clear.gif", transparency=1)
    assert read_image(tmp_path / "solid.png")[0, 0].tolist() == [10, 20, 30]
    assert (read_image(tmp_path / "clear.png") == 255).all() and (read_image(tmp_path / "clear.gif") == 255).all()
    gray = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    gray.save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png")[0].tolist() == [[7, 7, 7], [255, 255, 255]]


def test_the_picture_is_as_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - pixels).mean() < 60
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("gif", "webp"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
        assert np.abs(read_image(tmp_path / f"a.{kind}").astype(int) - 10).max() <= 3, "the first picture"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "image corrupt"),
        (b"plain text", "image corrupt"),
        (_png(30, 20), "image corrupt"),
        (_png(0, 20), "image corrupt"),
        (_png(100_000, 100_000), "image too large"),
        (_png(9_000, 9_000), "image too large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "image corrupt"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert error.value.reason == reason and "\n" not in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    for path, reason in (
        (tmp_path / "absent.png", "image missing"),
        (tmp_path / "a" / "b.png", "image missing"),
        (tmp_path, "image corrupt"),
    ):
        with pytest.raises(ImageError) as error:
            read_image(path)
        assert error.value.reason == reason


def test_floating_point_pixels_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="floating-point"):
        read_image(tmp_path / "a.tif")


def test_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(image_file, "MAX_PIXELS", 100)
    assert read_image(tmp_path / "a.png").shape == (10, 10, 3)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 99)
    with pytest.raises(ImageError, match="10 x 10 pixels"):
        read_image(tmp_path / "a.png")
