"""Decodes image files.

Training reads millions of files from the web. Whatever a file's bytes are, the result is pixels or an `ImageError`.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from anytext2.data.image_formats import (
    FORMATS,
    SNIFFED_BYTES,
    displayed_format,
    format_of,
    is_readable,
    readable_formats,
)

IMAGE_MISSING = "image missing"
"""The reason of an `ImageError` for a file that does not exist."""

MAX_PIXELS = 1 << 26
"""Larger pictures (200 MB of pixels) are refused before decoding; a small file may be a decompression bomb."""

_ORIENTATION = 0x0112  # tag of EXIF
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright."""


warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # malformed EXIF data; viewers ignore it, too


class ImageError(Exception):
    """An image file that cannot be used. reason: without details, so that it can be counted; details: of this file."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(f"{reason} ({details})" if details else reason)
        self.reason = reason
        self.details = details


@dataclass(frozen=True)
class ImageHeader:
    """What the beginning of an image file says. kind: format, with the kind of pixels where it is unusual;
    stored_size: height and width of the stored pixels; orientation: of EXIF, 1 where there is none.
    """

    kind: str
    stored_size: tuple[int, int]
    orientation: int

    def size(self, exif: str) -> tuple[int, int]:
        """Height and width of the picture as `read_image` returns it."""
        height, width = self.stored_size
        return (width, height) if exif == "apply" and self.orientation >= 5 else (height, width)


def read_image(path: Path, exif: str = "ignore") -> np.ndarray:
    """The pixels of an image file: uint8 [H, W, 3], red-green-blue.

    exif: `apply` turns the picture by its EXIF orientation, `ignore` leaves it as stored. Pillow always turns a TIFF.
    Of an animation, the first frame is read. 16 bits are scaled to 8. Transparent pixels are composited on white.
    Colour profiles are not applied.
    Raises ImageError if the file is missing, truncated, too large or not an image of a format that is read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError("image too large", f"{width} x {height} pixels")
            if width * height == 0:
                raise ImageError("image corrupt", f"{width} x {height} pixels")
            _fit_transparency(image)
            turn = _TURNS.get(_orientation(image, path)) if exif == "apply" else None
            pixels = _rgb(image)
            return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(IMAGE_MISSING) from error
    except Image.DecompressionBombError as error:
        raise ImageError("image too large", _one_line(error)) from error
    except Exception as error:  # a decoder may raise anything (struct.error, KeyError, ...) over corrupt bytes
        raise _explained(path, error) from error


def read_header(path: Path) -> ImageHeader | None:
    """The header of an image file, without decoding its pixels; None if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return ImageHeader(_kind(image), (image.height, image.width), _orientation(image, path))
    except Exception:  # as in read_image, which says why
        return None


def _orientation(image: Image.Image, path: Path) -> int:
    """The EXIF orientation that has not been applied yet: 1 (none) to 8."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF while it is decoded, and has already swapped its size
    named = image.info.keys() & {"exif", "Raw profile type exif"}
    if image.format == "PNG" and not named and not _has_exif_chunk(path):
        return 1  # to look for it, Pillow would decode the whole picture
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # malformed EXIF data, which viewers ignore
        return 1
    return found if found in _TURNS else 1


def _has_exif_chunk(path: Path) -> bool:
    """Whether a PNG file has an eXIf chunk, which may also follow the pixels."""
    with path.open("rb", buffering=0) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"eXIf":
                return True
            file.seek(length + 4, 1)
    return False


def _kind(image: Image.Image) -> str:
    name, mode = displayed_format(image.format or ""), image.mode
    if mode.startswith("I"):
        return f"{name} (16 bits gray)"
    return f"{name} ({mode})" if mode in ("CMYK", "LAB", "F") else name


# --- pixels ---


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ImageError(f"image of {kind} pixels", "their range is not known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "LAB":
        raise ImageError("image in Lab colours", "convert it to RGB")
    if image.mode in ("La", "RGBa"):  # multiplied by their alpha
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return np.array(image.convert("RGB"))


def _from_16_bits(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] from gray values of up to 16 bits. Pillow's own conversion clips them at 255."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImageFile):
        bits, white_is_zero = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0], image.tag_v2.get(_PHOTOMETRIC) == 0
    gray, white = np.asarray(image), (1 << bits) - 1
    narrow = ((np.clip(gray, 0, white).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    if white_is_zero:
        narrow = 255 - narrow
    if "transparency" in image.info:
        narrow[gray == image.info["transparency"]] = 255
    return np.repeat(narrow[:, :, None], 3, axis=2)


def _fit_transparency(image: ImageFile.ImageFile) -> None:
    """Brings a PNG's transparent value to 8 bits. Pillow leaves it as in the file, and gives the pixels 8 bits."""
    found, raw_mode = image.info.get("transparency"), image.tile[0][3] if image.format == "PNG" and image.tile else ""
    if isinstance(found, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in found)
    elif isinstance(found, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = found * (85 if raw_mode == "L;2" else 17)


# --- errors ---


def _explained(path: Path, error: Exception) -> ImageError:
    """Why a file could not be decoded: its format is not read, or its content is broken."""
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
    except OSError as failure:
        return ImageError("image corrupt", _one_line(failure))
    found = format_of(head)
    if found and not is_readable(found):
        return ImageError(f"image format not read: {found}", f"read are {readable_formats()}")
    if not head:
        return ImageError("image corrupt", "the file is empty")
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageError("image corrupt", f"a broken {found} file" if found else f"no known format: {head[:16]!r}")
    return ImageError("image corrupt", f"{found + ' file, ' if found else ''}{_one_line(error)}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
