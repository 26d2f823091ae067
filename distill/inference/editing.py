"""Editing of pictures: reading them upright, the window that the model sees, and putting the new text back.

Outside of the places' soft edge the result is the picture itself, bit for bit, at its own size.

Shape legend: H/W pixels of the picture, h/w pixels of what the model draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from anytext2.data.geometry import Size
from anytext2.data.image_file import ImageError, read_image
from distill.inference.request import ImageSource

_ROOM = 0.45  # around what is edited, in its shorter side
_LEAST_SIDE = 512  # of a window in pixels, for a model that draws as many
_EDGE = 1 / 64  # width of the soft edge, in resolutions


def load_picture(source: ImageSource, what: str) -> np.ndarray:
    """The pixels of a picture as it is seen, turned by its EXIF orientation: uint8 [H, W, 3], red-green-blue.

    what: for errors. Raises ValueError where it cannot be read.
    """
    if isinstance(source, str | Path):
        try:
            return read_image(Path(source), "apply")
        except ImageError as error:
            raise ValueError(f"{what} {source}: {error}") from error
    if isinstance(source, Image.Image):
        upright = ImageOps.exif_transpose(source)
        if upright.has_transparency_data:
            page = Image.new("RGBA", upright.size, "white")
            page.alpha_composite(upright.convert("RGBA"))
            upright = page
        return np.array(upright.convert("RGB"))
    if not isinstance(source, np.ndarray) or source.dtype != np.uint8 or source.ndim not in (2, 3) or not source.size:
        found = f"{source.dtype} {list(source.shape)}" if isinstance(source, np.ndarray) else type(source).__name__
        raise ValueError(f"{what}: expected a file, a PIL picture or uint8 [H, W, 3], got {found}")
    if source.ndim == 2:
        return np.repeat(source[..., None], 3, axis=2)
    if source.shape[2] != 3:
        raise ValueError(f"{what}: expected uint8 [H, W, 3], got {list(source.shape)}")
    return np.ascontiguousarray(source)


def load_mask(source: ImageSource) -> np.ndarray | Image.Image:
    """A mask picture as it is seen, with its transparency. Raises ValueError where it cannot be read."""
    pixels = load_picture(source, "mask")
    if isinstance(source, np.ndarray):
        return pixels
    with Image.open(source) if isinstance(source, str | Path) else nullcontext(source) as image:
        return ImageOps.exif_transpose(image).convert("RGBA") if image.has_transparency_data else pixels


@dataclass(frozen=True)
class EditWindow:
    """The part of a picture that the model draws anew.

    left, top: of the window in the picture. extent: its size (H, W) there. inner: its size (h, w) for the model, and
    size: with the margin at right and bottom that makes it a multiple of the model's cells.
    """

    left: int
    top: int
    extent: Size
    inner: Size
    size: Size

    @property
    def scale(self) -> np.ndarray:
        """Pixels of the model for each pixel of the picture along x and y, float32 [2]."""
        return np.array([self.inner[1] / self.extent[1], self.inner[0] / self.extent[0]], np.float32)

    def to_model(self, polygon: np.ndarray) -> np.ndarray:
        """A polygon of the picture, float32 [P, 2], in pixels of the model; rounding moves no corner out of them."""
        moved = (polygon - np.array([self.left, self.top], np.float32)) * self.scale
        inside: np.ndarray = np.clip(moved, 0, np.array(self.inner[::-1], np.float32) - 1)
        return inside

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """What the model sees of a picture [H, W, 3]: uint8 [h, w, 3], with the last pixels repeated in the margin."""
        (height, width), (bottom, right) = self.inner, (self.size[0] - self.inner[0], self.size[1] - self.inner[1])
        part = picture[self.top : self.top + self.extent[0], self.left : self.left + self.extent[1]]
        return cv2.copyMakeBorder(_resized(part, (height, width)), 0, bottom, 0, right, cv2.BORDER_REPLICATE)

    def cut_mask(self, mask: np.ndarray) -> np.ndarray:
        """What the model sees of a mask of the picture [H, W] in {0, 1}: uint8 [h, w], 0 in the margin."""
        (height, width), (bottom, right) = self.inner, (self.size[0] - self.inner[0], self.size[1] - self.inner[1])
        part = mask[self.top : self.top + self.extent[0], self.left : self.left + self.extent[1]]
        share = _resized(part * 255, (height, width))
        kept = share >= min(128, max(1, int(share.max())))  # a thin shape keeps some pixels
        return np.pad(kept.astype(np.uint8), ((0, bottom), (0, right)))

    def put_back(self, picture: np.ndarray, drawn: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The picture [H, W, 3] with what was drawn, uint8 [h, w, 3], where `weight` [H, W] is above 0."""
        result = picture.copy()
        rows, columns = (slice(a, a + n) for a, n in zip((self.top, self.left), self.extent, strict=True))
        new = _resized(drawn[: self.inner[0], : self.inner[1]], self.extent).astype(np.float32)
        old, share = picture[rows, columns].astype(np.float32), weight[rows, columns, None]
        # Where the weight is 0, this is exactly the old pixel.
        result[rows, columns] = np.round(old + share * (new - old)).clip(0, 255).astype(np.uint8)
        return result


def choose_window(picture: Size, polygons: Sequence[np.ndarray], side: int, cells: int) -> EditWindow:
    """The window around the polygons of a picture of size (H, W), for a model that draws side x side pixels at most.

    It is the whole picture where that is small enough, otherwise the polygons with room around them. A window with more
    pixels than the model draws is scaled down. cells: sides of what the model draws are multiples of it.
    """
    origin, extent = [0, 0], picture
    if max(picture) > side:
        points = np.concatenate(polygons)
        low, high = points.min(axis=0)[::-1], points.max(axis=0)[::-1]  # y, x
        room = _ROOM * float((high - low).min())
        wanted = [max(math.ceil(length + 2 * room), min(side, _LEAST_SIDE)) for length in (high - low).tolist()]
        extent = (min(wanted[0], picture[0]), min(wanted[1], picture[1]))
        begins = [round(c - n / 2) for c, n in zip(((low + high) / 2).tolist(), extent, strict=True)]
        origin = [min(max(0, b), most - n) for b, n, most in zip(begins, extent, picture, strict=True)]
    factor = min(1.0, side / math.sqrt(extent[0] * extent[1]))
    inner = (max(1, round(extent[0] * factor)), max(1, round(extent[1] * factor)))
    size = (cells * math.ceil(inner[0] / cells), cells * math.ceil(inner[1] / cells))
    return EditWindow(origin[1], origin[0], extent, inner, size)


def window_notice(window: EditWindow, picture: Size) -> str:
    """What a user should know of the window; empty where it is the whole picture at its own size."""
    parts = []
    if window.extent != picture:
        height, width = window.extent
        parts.append(f"of the picture's {picture[1]} x {picture[0]} pixels the model sees {width} x {height}")
    if window.inner != window.extent:
        height, width = window.inner
        parts.append(f"the new text is drawn at {width} x {height} pixels and enlarged")
    return "; ".join(parts)


def soft_mask(inside: np.ndarray, edge: float) -> np.ndarray:
    """The weight of what was drawn: float32 [H, W], 1 inside a mask [H, W] in {0, 1}, 0 from `edge` pixels outside."""
    if not inside.any():
        return inside.astype(np.float32)
    distance = cv2.distanceTransform(1 - inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weight: np.ndarray = np.clip(1.0 - distance / max(edge, 1.0), 0.0, 1.0).astype(np.float32)
    return weight


def edge_width(window: EditWindow, resolution: int) -> float:
    """Width of the soft edge in pixels of the picture."""
    return max(2.0, _EDGE * resolution) / float(window.scale.min())


def _resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    if pixels.shape[:2] == size:
        return pixels
    method = cv2.INTER_AREA if size[0] * size[1] < pixels.shape[0] * pixels.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(pixels, (size[1], size[0]), interpolation=method)
