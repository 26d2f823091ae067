"""Decodes image files.

Training reads millions of files from the web. Whatever a file's bytes are, the result is pixels or an `ImageError`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's formats that are read. Others are rare on the web, or run another program (EPS runs Ghostscript)."""

MAX_PIXELS = 1 << 26
"""Larger pictures (200 MB of pixels) are refused before decoding; a small file may be a decompression bomb."""


class ImageError(Exception):
    """An image file that cannot be used. reason: without details, so that it can be counted; details: of this file."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(f"{reason} ({details})" if details else reason)
        self.reason = reason
        self.details = details


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image file: uint8 [H, W, 3], red-green-blue.

    EXIF rotation is not applied, because annotations were made without it. Of an animation, the first frame is read.
    16 bits are scaled to 8. Transparent pixels are composited on white.
    Raises ImageError if the file is missing, truncated, too large or not an image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError("image too large", f"{width} x {height} pixels")
            if width * height == 0:
                raise ImageError("image corrupt", f"{width} x {height} pixels")
            return _rgb(image)
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("image missing") from error
    except Image.DecompressionBombError as error:
        raise ImageError("image too large", _one_line(error)) from error
    except Exception as error:  # a decoder may raise anything (struct.error, KeyError, ...) over corrupt bytes
        raise ImageError("image corrupt", _one_line(error)) from error


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise ImageError("image of floating-point pixels", "their range is not known")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return np.array(image.convert("RGB"))


def _from_16_bits(gray: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] from gray values 0..65535 [H, W]. Pillow's own conversion clips them at 255."""
    narrow = (np.clip(gray, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535
    return np.repeat(narrow.astype(np.uint8)[:, :, None], 3, axis=2)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
