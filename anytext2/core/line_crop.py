"""From a picture and a line's place in it to the recogniser's input.

The geometry is worked out on the host with OpenCV; the pixels are resampled by torch, so that a loss on the
recogniser's output has a gradient in the picture. Conventions are AnyText2's, to the pixel.

Shape suffixes: N lines, C channels, H/W pixels of the picture, h/w pixels of a crop. A quad is float32 [4, 2]: the
corners top left, top right, bottom right, bottom left as x, y in pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LINE_HEIGHT = 48
LINE_WIDTH = 320
VERTICAL_ASPECT = 1.2
"""A line taller than this many times its width is turned by 90 degrees before it is read."""


def quad_of_points(points: np.ndarray) -> np.ndarray:
    """Corners [4, 2] of the smallest rectangle around points [P, 2], cut to whole pixels as AnyText2 does.

    Ordered by position, not by the rectangle's angle: left and right pair by x, then top and bottom by y.
    """
    corners = cv2.boxPoints(cv2.minAreaRect(np.asarray(points, dtype=np.float32).reshape(-1, 1, 2)))
    # OpenCV's release decides on which side of a whole number 99.9999 falls; the cut must not depend on it.
    corners = np.trunc(corners + np.copysign(1e-3, corners)).astype(np.float32)
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = (pair[np.argsort(pair[:, 1], kind="stable")] for pair in (by_x[:2], by_x[2:]))
    return np.stack([left[0], right[0], right[1], left[1]])


def quad_of_mask(mask_HW: np.ndarray) -> np.ndarray | None:
    """Corners [4, 2] of the rectangle around the largest region of a {0, 1} mask; None if the mask is empty."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask_HW, dtype=np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    if not contours:
        return None
    return quad_of_points(max(contours, key=cv2.contourArea))


def crop_size(quad: np.ndarray) -> tuple[int, int]:
    """Height and width in whole pixels of the upright crop of a quad: the longer of each pair of sides."""
    height, width = _sides(quad)
    return int(height), int(width)


def _sides(quad: np.ndarray) -> tuple[float, float]:
    top_left, top_right, bottom_right, bottom_left = quad.astype(np.float64)
    width = max(np.linalg.norm(top_left - top_right), np.linalg.norm(bottom_right - bottom_left))
    height = max(np.linalg.norm(top_left - bottom_left), np.linalg.norm(top_right - bottom_right))
    return float(height), float(width)


def _upright_to_picture(quad: np.ndarray) -> tuple[complex, complex]:
    """The similarity z -> a z + b from the upright crop to the picture, points written as x + iy.

    It inverts the least-squares similarity from the quad to the upright rectangle (Umeyama 1991), which in the
    complex plane is a linear regression with one complex slope.
    """
    height, width = _sides(quad)
    source = quad[:, 0].astype(np.float64) + 1j * quad[:, 1]
    target = np.array([0, width, width + 1j * height, 1j * height])
    centred = source - source.mean()
    slope = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred).real
    return 1 / slope, source.mean() - target.mean() / slope


def crop_line(image_CHW: Tensor, quad: np.ndarray) -> Tensor | None:
    """The upright crop [C, h, w] of a quad, bilinear, clamped to [0, 1]; black (0) outside the picture.

    Args:
        image_CHW: float32, values in [0, 1]. The result is differentiable in it.
    Returns:
        None if the quad is less than one pixel high or wide.
    """
    h, w = crop_size(quad)
    if h < 1 or w < 1:
        return None
    height, width = image_CHW.shape[1:]
    grid = torch.from_numpy(2 * _picture_shares(quad, (height, width), np.arange(h), np.arange(w)) - 1)
    grid = grid.to(device=image_CHW.device, dtype=image_CHW.dtype)
    return F.grid_sample(image_CHW[None], grid[None], align_corners=True)[0].clamp(0, 1)


def _picture_shares(quad: np.ndarray, size: tuple[int, int], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where the upright crop's rows y and columns x lie in a picture of `size` (height, width): x, y as shares of the
    way from the first pixel's centre to the last one's, float64 [len(y), len(x), 2].
    """
    height, width = size
    slope, offset = _upright_to_picture(quad)
    # The reference takes a pixel's coordinate to be a fraction of W on one side of its affine grid and of W - 1 on
    # the other; the two factors below are what remains of that.
    across = x * (width / max(width - 1, 1))
    down = y * (height / max(height - 1, 1))
    points = slope * (across[None, :] + 1j * down[:, None]) + offset
    return np.stack([points.real / width, points.imag / height], axis=-1)


def recognizer_input(lines_NChw: Tensor) -> Tensor:
    """The recogniser's input [N, 3, 48, 320] from upright lines of one size, C = 1 or 3, values in [0, 1].

    Tall lines are turned, all are resized to 48 pixels height and at most 320 width, mapped to [-1, 1] and padded on
    the right with 0.
    """
    height, width = lines_NChw.shape[2:]
    if height > VERTICAL_ASPECT * width:
        lines_NChw = lines_NChw.transpose(2, 3).flip(2)
        height, width = width, height
    new_width = min(LINE_WIDTH, math.ceil(LINE_HEIGHT * (width / height)))
    resized = F.interpolate(lines_NChw, (LINE_HEIGHT, new_width), mode="bilinear", align_corners=True)
    padded = F.pad(2 * resized - 1, (0, LINE_WIDTH - new_width))
    return padded.expand(-1, 3, -1, -1)


def recognizer_points(quad: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Where in a picture of `size` (height, width) the recogniser's input is taken from: x, y in pixels, the first
    pixel's centre being 0, float64 [48, w, 2] with w <= 320 (what is right of them is padding).

    `crop_line` and `recognizer_input` as one resampling of the picture. None if the quad is less than one pixel high or
    wide.
    """
    height, width = crop_size(quad)
    if height < 1 or width < 1:
        return None
    turned = height > VERTICAL_ASPECT * width
    rows, columns = (width, height) if turned else (height, width)
    new_width = min(LINE_WIDTH, math.ceil(LINE_HEIGHT * (columns / rows)))
    down, across = np.linspace(0, rows - 1, LINE_HEIGHT), np.linspace(0, columns - 1, new_width)
    if turned:
        shares = _picture_shares(quad, size, across, (width - 1) - down).transpose(1, 0, 2)
    else:
        shares = _picture_shares(quad, size, down, across)
    return shares * (size[1] - 1, size[0] - 1)
