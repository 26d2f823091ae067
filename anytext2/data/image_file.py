"""An image file as the pixels that its annotations were made on.

Training reads millions of files that somebody else collected: every file is either pixels or an `ImageError` that can
be counted, whatever its bytes are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Others are no pictures of the net, or are drawn by a foreign program (EPS by Ghostscript)."""

MAX_PIXELS = 1 << 26
"""Larger pictures are refused before they are decoded: 200 MB in each of many workers, or a small file that lies."""


class ImageError(Exception):
    """The file cannot be used. `reason` is the same for all files with this fault; details: what is wrong with it."""

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(f"{reason} ({details})" if details else reason)
        self.reason = reason
        self.details = details


def read_image(path: Path) -> np.ndarray:
    """A picture as stored: uint8 [H, W, 3], red-green-blue.

    No EXIF turn (annotations were made without it); the first picture of an animation; 16 bits are scaled to 8;
    transparent pixels lie on white, as on a page, since what colour they hide is chance. Raises ImageError when the
    file is missing, truncated, too large or not a picture.
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
    """Gray values 0..65535 [H, W] as colours; Pillow's own conversion would cut them off at 255."""
    narrow = (np.clip(gray, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535
    return np.repeat(narrow.astype(np.uint8)[:, :, None], 3, axis=2)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
