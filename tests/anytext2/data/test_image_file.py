"""Image files as pixels: depths, transparency, what is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anytext2.data import image_file
from anytext2.data.image_file import ImageError, read_header, read_image
from anytext2.data.image_formats import FORMATS, displayed_format, is_readable

NOT_READ = "image format not read: "
RAMP = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21  # 0..64491


def _png(
    width: int,
    height: int,
    depth: int = 8,
    color: int = 2,
    row: bytes = b"\0",
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG that claims a size and has one row of pixels; color: PNG's number of the kind of pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(b"\0" + row)), *after, (b"IEND", b"")]
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
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=_exif(6))  # to be turned by a quarter
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
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", f"{NOT_READ}PostScript (EPS)"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", f"{NOT_READ}HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", f"{NOT_READ}HEIC"),
        (b"\0\0\0\x14ftypisom\0\0\2\0isom", f"{NOT_READ}video (MP4 or MOV)"),
        (b"\xff\x0a\xfa\x1f", f"{NOT_READ}JPEG XL"),
        (b"8BPS\0\1", f"{NOT_READ}PSD (Photoshop)"),
        (
            b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            f"{NOT_READ}SVG",
        ),
        (b"\n<!DOCTYPE html>\n<title>404 Not Found", f"{NOT_READ}HTML page (a failed download)"),
        (b'{"error": "access denied"}', f"{NOT_READ}JSON text"),
        (b"%PDF-1.7", f"{NOT_READ}PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", f"{NOT_READ}Git LFS pointer"),
        (b"RIFF\x24\0\0\0AVI LIST", f"{NOT_READ}video (AVI)"),
        (b"\x1f\x8b\x08\0", f"{NOT_READ}gzip file"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert error.value.reason.startswith(reason) and "\n" not in str(error.value)
    if reason.startswith(NOT_READ):
        assert "read are JPEG, PNG, GIF" in error.value.details


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


# --- kinds of pixels ---

RED, BLUE = [200, 30, 40], [20, 90, 220]


def _two_colors() -> Image.Image:
    """Red above blue, 48 x 32."""
    return Image.fromarray(np.repeat(np.array([[RED], [BLUE]], np.uint8), (16, 16), axis=0).repeat(48, axis=1))


def _is_red_above_blue(pixels: np.ndarray) -> bool:
    middle = pixels.shape[1] // 2
    return bool(np.allclose(pixels[4, middle], RED, atol=6) and np.allclose(pixels[-4, middle], BLUE, atol=6))


def _without_adobe_marker(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def test_cmyk_has_the_colours_that_a_viewer_shows(tmp_path: Path) -> None:
    """JPEG files store inverted ink, with or without Adobe's marker; TIFF files do not."""
    cmyk = _two_colors().convert("CMYK")
    for name in ("a.jpg", "a.tif"):
        cmyk.save(tmp_path / name, quality=95)
        assert _is_red_above_blue(read_image(tmp_path / name)), name
    plain = _without_adobe_marker((tmp_path / "a.jpg").read_bytes())
    (tmp_path / "a.jpg").write_bytes(plain)
    assert b"Adobe" not in plain and _is_red_above_blue(read_image(tmp_path / "a.jpg"))
    header = read_header(tmp_path / "a.jpg")
    assert header is not None and header.kind == "JPEG (CMYK)"


@pytest.mark.parametrize("name", ["AVIF", "JPEG2000", "WEBP"])
def test_optional_formats_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    if name not in FORMATS:
        assert not is_readable(displayed_format(name))
        pytest.skip(f"this Pillow has no {name}")
    _two_colors().save(tmp_path / "a.jpg", name, quality=95)
    assert _is_red_above_blue(read_image(tmp_path / "a.jpg"))
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "a.jpg")
    assert error.value.reason == "image corrupt" and displayed_format(name) in error.value.details


@pytest.mark.parametrize(
    ("depth", "color", "row", "transparent", "expected"),
    [
        (1, 0, b"\xa0", None, [255, 0, 255, 0]),
        (1, 0, b"\xa0", 0, [255, 255, 255, 255]),
        (2, 0, b"\x1b", None, [0, 85, 170, 255]),
        (2, 0, b"\x1b", 1, [0, 255, 170, 255]),
        (4, 0, b"\x0f\x80", 8, [0, 255, 255, 0]),
        (8, 0, b"\x01\x02\x03\x04", 2, [1, 255, 3, 4]),
        (16, 0, struct.pack(">4H", 0, 0x1234, 0x8000, 65535), None, [0, 18, 128, 255]),
        (16, 0, struct.pack(">4H", 0, 0x1234, 0x8000, 65535), 0x1234, [0, 255, 128, 255]),
        (16, 4, struct.pack(">8H", 0, 65535, 0x1234, 65535, 0, 0, 0, 0x8000), None, [0, 18, 255, 127]),
        (16, 2, struct.pack(">12H", *[0] * 3, *[0x1234] * 3, *[65535] * 3, *[0] * 3), (0x1234,) * 3, [0, 255, 255, 0]),
        (16, 6, struct.pack(">16H", *[0, 0, 0, 65535] * 2, *[0] * 4, *[0, 0, 0, 0x8000]), None, [0, 0, 255, 127]),
    ],
)
def test_gray_values_of_a_png(
    tmp_path: Path, depth: int, color: int, row: bytes, transparent: int | tuple[int, ...] | None, expected: list[int]
) -> None:
    """Four pixels of every depth: black is 0 and white is 255, what is transparent is white."""
    values = () if transparent is None else transparent if isinstance(transparent, tuple) else (transparent,)
    before = [(b"tRNS", struct.pack(f">{len(values)}H", *values))] if values else []
    (tmp_path / "a.png").write_bytes(_png(4, 1, depth, color, row, before))
    pixels = read_image(tmp_path / "a.png")
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_allclose(pixels[0, :, 0].astype(int), expected, atol=1)


def _tiff(width: int, bits: int, photometric: int, row: bytes, sample_format: int = 1) -> bytes:
    short, long = 3, 4
    tags = [
        (256, short, width),
        (257, short, 1),
        (258, short, bits),
        (259, short, 1),
        (262, short, photometric),
        (273, long, 8),
        (277, short, 1),
        (278, short, 1),
        (279, long, len(row)),
        (339, short, sample_format),
    ]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(row)) + row + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize(
    ("bits", "photometric", "row", "expected"),
    [
        (1, 0, b"\xa0", [0, 255, 0, 255]),
        (8, 0, b"\x00\x01\xfe\xff", [255, 254, 1, 0]),
        (16, 1, struct.pack("<4H", 0, 0x1234, 0x8000, 65535), [0, 18, 128, 255]),
        (16, 0, struct.pack("<4H", 0, 0x1234, 0x8000, 65535), [255, 237, 127, 0]),
        (12, 1, b"\x00\x08\x00\xff\xf0\x10", [0, 128, 255, 1]),
    ],
)
def test_gray_values_of_a_tiff(tmp_path: Path, bits: int, photometric: int, row: bytes, expected: list[int]) -> None:
    """photometric 0: zero is white, as scanners and fax machines write."""
    (tmp_path / "a.tif").write_bytes(_tiff(4, bits, photometric, row))
    np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0, :, 0].astype(int), expected, atol=1)


def test_what_has_no_known_range_or_colours_is_named(tmp_path: Path) -> None:
    four = struct.pack("<4I", 0, 1, 2, 3)
    for content in (_tiff(4, 32, 1, four), _tiff(4, 16, 1, four[:8], sample_format=2)):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(ImageError, match="signed or 32-bit"):
            read_image(tmp_path / "a.tif")
    Image.merge("LAB", [Image.new("L", (4, 4))] * 3).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="Lab colours"):
        read_image(tmp_path / "a.tif")


def test_palettes_may_have_several_degrees_of_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette([200, 0, 0] * 3)
    palette.save(tmp_path / "a.png", transparency=bytes([255, 128, 0]))
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0], [[200, 0, 0], [227, 127, 127], [255] * 3], atol=1)


# --- EXIF orientation ---

_CORNERS = {2: "ba/dc", 3: "dc/ba", 4: "cd/ab", 5: "ac/bd", 6: "ca/db", 7: "db/ca", 8: "bd/ac"}
"""Corners of the picture ab/cd (rows from the top) as a viewer shows it, by orientation; after the EXIF standard."""


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
def test_orientation_is_applied_on_request(tmp_path: Path, orientation: int) -> None:
    corners = np.array([[10, 80], [150, 220]], np.uint8)  # a b / c d
    exif = _exif(orientation)
    Image.fromarray(corners.repeat(8, axis=0).repeat(16, axis=1)).save(tmp_path / "a.png", exif=exif)
    header = read_header(tmp_path / "a.png")
    assert header is not None and header.orientation == (orientation if orientation in _CORNERS else 1)
    names = dict(zip("abcd", corners.ravel().tolist(), strict=True))
    for option, expected in (("ignore", "ab/cd"), ("apply", _CORNERS.get(orientation, "ab/cd"))):
        pixels = read_image(tmp_path / "a.png", option)
        assert pixels.shape[:2] == header.size(option)
        found = [pixels[y, x, 0] for y in (0, -1) for x in (0, -1)]
        assert found == [names[name] for name in expected.replace("/", "")]


def test_orientation_of_every_format(tmp_path: Path) -> None:
    """A PNG may have it after the pixels; Pillow has always turned a TIFF, so nothing is left to apply."""
    raw = _exif(6).tobytes().removeprefix(b"Exif\0\0")
    for kind in ("jpg", "webp", "png", *(["avif"] if "AVIF" in FORMATS else [])):
        _two_colors().save(tmp_path / f"a.{kind}", exif=_exif(6))
    (tmp_path / "late.png").write_bytes(_png(2, 1, 8, 0, b"\x01\x02", after=[(b"eXIf", raw)]))
    for path in tmp_path.iterdir():
        header = read_header(path)
        assert header is not None and header.orientation == 6, path.name
        assert read_image(path, "apply").shape[:2] == header.size("apply") == header.stored_size[::-1]
    _two_colors().save(tmp_path / "a.tif", exif=_exif(6))
    header = read_header(tmp_path / "a.tif")
    assert header is not None and (header.orientation, header.stored_size) == (1, (48, 32))
    for option in ("ignore", "apply"):
        assert read_image(tmp_path / "a.tif", option).shape == (48, 32, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_malformed_exif_data_is_no_orientation(tmp_path: Path) -> None:
    for number, raw in enumerate((b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"Exif\0\0" + bytes(20))):
        _two_colors().save(tmp_path / f"{number}.jpg", exif=raw)
        header = read_header(tmp_path / f"{number}.jpg")
        assert header is not None and header.orientation == 1
        assert read_image(tmp_path / f"{number}.jpg", "apply").shape == (32, 48, 3)
    assert read_header(tmp_path / "absent.png") is None
