"""Lines of text from latents as inputs of the recogniser, upright and 48 x 320, without decoding whole pictures.

For each line a window of latent cells around it is decoded. The decoder's receptive field is larger than any affordable
margin, and its normalisations depend on the window: a line from a window is nearly, not exactly, the line from the
picture. Lines that are compared must therefore come from the same window.

Shape legend: N lines, C channels, H/W pixels of the picture, h/w latent cells of a window, P pixels of an input (48 x
320).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.batch import Batch
from anytext2.core.line_crop import LINE_HEIGHT, LINE_WIDTH, recognizer_sampling_grid
from anytext2.core.rng import Draws
from anytext2.core.transfer import to_device

MARGIN = 3
"""Cells on each side of a line that are decoded with it. docs/LOG.md has the remaining error."""

QUANTUM = 4
"""Sides of windows are multiples of this number of cells, so that few sizes occur and lines are decoded together."""


@dataclass(frozen=True)
class CropWindow:
    """Cells of a latent: [top, top + height) x [left, left + width)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, latent: Tensor) -> Tensor:
        """The cells [..., h, w] of a latent [..., H, W]."""
        return latent[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class LinePlace:
    """One line: its sample's row, its number there, the window to decode, and the pixels of the recogniser's input.

    points: x, y in pixels of the picture, float64 [48, w, 2] with w <= 320.
    """

    row: int
    number: int
    window: CropWindow
    points: np.ndarray


def choose_lines(batch: Batch, draws: Draws, max_lines: int, size: tuple[int, int], step: int) -> list[LinePlace]:
    """Up to ``max_lines`` random lines of each sample, sorted by the size of their windows.

    size: (H, W) of the pictures, ``step`` pixels a cell. Lines less than a pixel high or wide are ignored.
    """
    keys = draws.normal("terms/lines", (batch.position.shape[1],)).tolist()
    places: list[LinePlace] = []
    for row, quads in enumerate(batch.quads):
        found = [
            LinePlace(row, number, _window(points, size, step), points)
            for number, quad in enumerate(quads)
            if quad is not None and (points := recognizer_sampling_grid(quad, size)) is not None
        ]
        places += sorted(found, key=lambda place: keys[place.row][place.number])[:max_lines]
    return sorted(places, key=_window_size)


def _window_size(place: LinePlace) -> tuple[int, int]:
    return place.window.height, place.window.width


def _window(points: np.ndarray, size: tuple[int, int], step: int) -> CropWindow:
    """The cells that contain the points, and a margin, within the picture."""
    spans = [
        _span(points[..., axis].min() / step, points[..., axis].max() / step, length // step)
        for axis, length in ((1, size[0]), (0, size[1]))
    ]
    (top, height), (left, width) = spans
    return CropWindow(top, left, height, width)


def _span(first: float, last: float, cells: int) -> tuple[int, int]:
    """Start and length, the margin on both sides as even as the picture allows."""
    start = int(np.clip(np.floor(first), 0, cells - 1)) - MARGIN
    end = int(np.clip(np.floor(last), 0, cells - 1)) + 1 + MARGIN
    length = min(-(-(end - start) // QUANTUM) * QUANTUM, cells)
    start -= (length - (end - start)) // 2
    return min(max(start, 0), cells - length), length


def decode_lines(latent_BChw: Tensor, places: Sequence[LinePlace], decode: Callable[[Tensor], Tensor]) -> Tensor:
    """The recogniser's inputs [N, 3, 48, 320] in [-1, 1], right-padded with 0, of lines in the decoded latents.

    decode: latents [n, C, h, w] -> pictures [n, 3, ., .] in [-1, 1]. Differentiable in the latent where decode is.
    """
    crops = [
        _warped(decode(torch.stack([place.window.of(latent_BChw[place.row]) for place in group])), group, latent_BChw)
        for group in (list(members) for _, members in groupby(places, key=_window_size))
    ]
    # Pixels outside of a picture are black, and values are clipped to white, as in `crop_line`.
    return (2 * torch.cat(crops).clamp(0, 1) - 1) * inside(places, latent_BChw)


def _warped(pictures: Tensor, places: Sequence[LinePlace], like: Tensor) -> Tensor:
    """Pictures [n, 3, ., .] of windows in [-1, 1] -> upright lines [n, 3, 48, 320] in [0, 1]."""
    height, width = pictures.shape[2:]
    scale_y, scale_x = height / places[0].window.height, width / places[0].window.width
    grids = np.stack(
        [
            _padded(place.points - (place.window.left * scale_x, place.window.top * scale_y))
            * (2.0, 2.0)
            / (width - 1, height - 1)
            - 1.0
            for place in places
        ]
    )
    pictures = (pictures.to(like.dtype) + 1) / 2
    return F.grid_sample(pictures, _copied(grids, pictures), align_corners=True)


def sample_pages(pages_B1HW: Tensor, places: Sequence[LinePlace], size: tuple[int, int]) -> Tensor:
    """Upright lines [N, 1, 48, 320] of pages of the whole picture of ``size`` (H, W) at any scale; padding 0."""
    grids = np.stack([_padded(place.points) * (2 / (size[1] - 1), 2 / (size[0] - 1)) - 1 for place in places])
    pages = torch.stack([pages_B1HW[place.row] for place in places])
    return F.grid_sample(pages, _copied(grids, pages), align_corners=True) * inside(places, pages)


def inside(places: Sequence[LinePlace], like: Tensor) -> Tensor:
    """1 inside an input's line, 0 in its padding, [N, 1, 48, 320]."""
    widths = torch.tensor([place.points.shape[1] for place in places])
    columns = torch.arange(LINE_WIDTH) < widths[:, None]
    return to_device(columns.to(like.dtype), like.device)[:, None, None, :].expand(-1, 1, LINE_HEIGHT, -1)


def _copied(grids: np.ndarray, like: Tensor) -> Tensor:
    return to_device(torch.from_numpy(grids).to(like.dtype), like.device)


def _padded(points: np.ndarray) -> np.ndarray:
    """Points [48, w, 2] with zeros up to a width of 320."""
    return np.pad(points, ((0, 0), (0, LINE_WIDTH - points.shape[1]), (0, 0)))
