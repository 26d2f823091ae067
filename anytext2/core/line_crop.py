"""Crops a line of text from a picture and prepares it as the recogniser's input.

OpenCV computes the geometry on the host. Torch resamples the pixels, so that a loss on the recogniser's output has a
gradient in the picture. The conventions are AnyText2's, to the pixel.

Shape suffixes: N lines, P points, C channels, H/W pixels of the picture, h/w pixels of a crop. A quad is float32
[4, 2]: the corners top left, top right, bottom right, bottom left as x, y in pixels.
"""

from __future__ import annotations

import math
import warnings

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LINE_HEIGHT = 48
LINE_WIDTH = 320
"""Size in pixels of the recogniser's input."""

# Official AnyText2 takes the font hint of a line without a region from the top left corner.
_DEFAULT_QUAD = np.array([[0, 0], [100, 0], [100, 100], [0, 100]], dtype=np.float32)

VERTICAL_ASPECT = 1.2
"""A line whose height is more than this many times its width is rotated by 90 degrees before recognition."""


def quad_from_points(points: np.ndarray) -> np.ndarray:
    """The minimum-area rectangle of points [P, 2] as a quad, truncated to whole pixels as in AnyText2.

    Corners are ordered by position, not by the rectangle's angle: by x into a left and a right pair, then by y.
    """
    corners = cv2.boxPoints(cv2.minAreaRect(np.asarray(points, dtype=np.float32).reshape(-1, 1, 2)))
    # OpenCV releases differ in whether a corner is 99.9999 or 100; the result must not depend on that.
    corners = np.trunc(corners + np.copysign(1e-3, corners)).astype(np.float32)
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = (pair[np.argsort(pair[:, 1], kind="stable")] for pair in (by_x[:2], by_x[2:]))
    return np.stack([left[0], right[0], right[1], left[1]])


def quad_from_mask(mask_HW: np.ndarray) -> np.ndarray | None:
    """`quad_from_points` of the largest region of a {0, 1} mask [H, W]; None if the mask is empty."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask_HW, dtype=np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours:
        return None
    return quad_from_points(max(contours, key=cv2.contourArea))


def crop_size(quad: np.ndarray) -> tuple[int, int]:
    """Height and width in whole pixels of the upright crop of a quad: the longer of each pair of opposite sides."""
    height, width = _side_lengths(quad)
    return int(height), int(width)


def _side_lengths(quad: np.ndarray) -> tuple[float, float]:
    top_left, top_right, bottom_right, bottom_left = quad.astype(np.float64)
    width = max(np.linalg.norm(top_left - top_right), np.linalg.norm(bottom_right - bottom_left))
    height = max(np.linalg.norm(top_left - bottom_left), np.linalg.norm(top_right - bottom_right))
    return float(height), float(width)


def _crop_to_picture(quad: np.ndarray) -> tuple[complex, complex]:
    """Coefficients a, b of the similarity z -> a z + b from the upright crop to the picture, for points z = x + iy.

    It is the inverse of the least-squares similarity from the quad to the upright rectangle (Umeyama 1991). In the
    complex plane that is a linear regression with one complex slope.
    """
    height, width = _side_lengths(quad)
    source = quad[:, 0].astype(np.float64) + 1j * quad[:, 1]
    target = np.array([0, width, width + 1j * height, 1j * height])
    centred = source - source.mean()
    slope = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred).real
    return 1 / slope, source.mean() - target.mean() / slope


def crop_line(image_CHW: Tensor, quad: np.ndarray) -> Tensor | None:
    """The upright crop [C, h, w] of a quad, resampled bilinearly, in [0, 1]; 0 (black) outside the picture.

    Args:
        image_CHW: float32 [C, H, W] in [0, 1]. The crop is differentiable in it.
        quad: corners [4, 2].
    Returns:
        The crop, or None if the quad is less than one pixel high or wide.
    """
    h, w = crop_size(quad)
    if h < 1 or w < 1:
        return None
    height, width = image_CHW.shape[1:]
    grid = torch.from_numpy(2 * _relative_coordinates(quad, (height, width), np.arange(h), np.arange(w)) - 1)
    grid = grid.to(device=image_CHW.device, dtype=image_CHW.dtype)
    return F.grid_sample(image_CHW[None], grid[None], align_corners=True)[0].clamp(0, 1)


def _relative_coordinates(quad: np.ndarray, size: tuple[int, int], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Picture coordinates of the crop's rows y and columns x, for a picture of `size` (height, width).

    Returns x, y as float64 [len(y), len(x), 2]: 0 is the first pixel's centre, 1 the last pixel's.
    """
    height, width = size
    slope, offset = _crop_to_picture(quad)
    # AnyText2's affine grid divides pixel coordinates by W on one side and by W - 1 on the other. The two factors
    # below reproduce that.
    across = x * (width / max(width - 1, 1))
    down = y * (height / max(height - 1, 1))
    points = slope * (across[None, :] + 1j * down[:, None]) + offset
    return np.stack([points.real / width, points.imag / height], axis=-1)


def recognizer_input(lines_NChw: Tensor) -> Tensor:
    """The recogniser's input [N, 3, 48, 320] in [-1, 1] from upright crops [N, C, h, w] in [0, 1] with C = 1 or 3.

    Tall crops (see VERTICAL_ASPECT) are rotated. Crops are resized to a height of 48 and a width of at most 320 pixels
    and padded on the right with 0.
    """
    height, width = lines_NChw.shape[2:]
    if height > VERTICAL_ASPECT * width:
        lines_NChw = lines_NChw.transpose(2, 3).flip(2)
        height, width = width, height
    new_width = min(LINE_WIDTH, math.ceil(LINE_HEIGHT * (width / height)))
    resized = F.interpolate(lines_NChw, (LINE_HEIGHT, new_width), mode="bilinear", align_corners=True)
    padded = F.pad(2 * resized - 1, (0, LINE_WIDTH - new_width))
    return padded.expand(-1, 3, -1, -1)


def font_crop(hint_1HW: Tensor, quad: np.ndarray | None) -> Tensor:
    """What the font recogniser sees of one line: float32 [1, 48, 320], one channel of `recognizer_input`.

    Without a region (no quad, or one thinner than a pixel) it is the hint's top left corner, as in official AnyText2,
    and a warning says so.
    """
    crop = None if quad is None else crop_line(hint_1HW, quad)
    if crop is None:
        # The same text for all lines, so that Python's default filter shows it once.
        warnings.warn("a line's position mask has no region to take a font from", stacklevel=2)
        crop = crop_line(hint_1HW, _DEFAULT_QUAD)
        assert crop is not None
    return recognizer_input(crop[None])[0, :1]


def recognizer_sampling_grid(quad: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Picture coordinates of the recogniser's input pixels: `crop_line` and `recognizer_input` as one resampling.

    Args:
        quad: corners [4, 2].
        size: height and width of the picture.
    Returns:
        x, y in pixels, 0 at the first pixel's centre: float64 [48, w, 2] with w <= 320, without the padding. None if
        the quad is less than one pixel high or wide.
    """
    height, width = crop_size(quad)
    if height < 1 or width < 1:
        return None
    rotated = height > VERTICAL_ASPECT * width
    rows, columns = (width, height) if rotated else (height, width)
    new_width = min(LINE_WIDTH, math.ceil(LINE_HEIGHT * (columns / rows)))
    down, across = np.linspace(0, rows - 1, LINE_HEIGHT), np.linspace(0, columns - 1, new_width)
    if rotated:
        grid = _relative_coordinates(quad, size, across, (width - 1) - down).transpose(1, 0, 2)
    else:
        grid = _relative_coordinates(quad, size, down, across)
    return grid * (size[1] - 1, size[0] - 1)
