from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anytext2.core.line_crop import (
    crop_line,
    crop_size,
    quad_from_mask,
    quad_from_points,
    recognizer_input,
    recognizer_sampling_grid,
)
from tests.helpers.models.parity import normal

RECTANGLE = np.array([[10, 20], [70, 20], [70, 40], [10, 40]], np.float32)


def rotated(points: np.ndarray, degrees: float) -> np.ndarray:
    angle, centre = math.radians(degrees), points.mean(axis=0)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return ((points - centre) @ turn.T + centre).astype(np.float32)


def picture(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth, different in every direction and channel, within (0, 1)."""
    y, x = torch.meshgrid(
        torch.linspace(0, 1, height, dtype=dtype), torch.linspace(0, 1, width, dtype=dtype), indexing="ij"
    )
    return torch.stack([x, y, (x * 6).sin() * (y * 5).cos()]) * 0.4 + 0.5


def plain_crop(image: Tensor, quad: np.ndarray) -> Tensor:
    """The reference's procedure, step by step: Umeyama by singular values, affine_grid over the whole picture."""
    source = quad.astype(np.float64)
    width = max(np.linalg.norm(source[0] - source[1]), np.linalg.norm(source[2] - source[3]))
    height = max(np.linalg.norm(source[0] - source[3]), np.linalg.norm(source[1] - source[2]))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    a, b = source - source.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a / 4)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (singular * sign).sum() / a.var(axis=0).sum()
    matrix = np.eye(3)
    matrix[:2, :2] = scale * rotation
    matrix[:2, 2] = target.mean(0) - scale * rotation @ source.mean(0)
    channels, h, w = image.shape
    normalised = np.array([[2 / w, 0, -1], [0, 2 / h, -1], [0, 0, 1]])
    theta = np.linalg.inv(normalised @ matrix @ np.linalg.inv(normalised))[:2]
    grid = F.affine_grid(torch.from_numpy(theta)[None].to(image.dtype), [1, channels, h, w], align_corners=True)
    return F.grid_sample(image[None], grid, align_corners=True)[0].clamp(0, 1)[:, : int(height), : int(width)]


@pytest.mark.parametrize("degrees", [0, 7, -33, 90, 145])
@pytest.mark.parametrize("size", [(64, 96), (90, 80)])
def test_crop_equals_the_reference_procedure(degrees: float, size: tuple[int, int]) -> None:
    image = picture(*size, dtype=torch.float64)
    quad = quad_from_points(rotated(RECTANGLE, degrees))
    crop = crop_line(image, quad)
    assert crop is not None and crop.shape[1:] == crop_size(quad)
    torch.testing.assert_close(crop, plain_crop(image, quad), rtol=0, atol=1e-9)


def test_upright_crop_shows_what_lies_in_the_box() -> None:
    image = torch.zeros(1, 100, 100)
    image[0, 20:40, 10:70] = 1
    crop = crop_line(image, quad_from_points(RECTANGLE))
    assert crop is not None and crop.shape == (1, 20, 60)
    assert crop[:, 1:-1, 1:-1].min() > 0.99
    outside = crop_line(image, quad_from_points(RECTANGLE + [0, 40]))
    assert outside is not None and outside.max() < 0.5


def test_a_turned_line_comes_out_upright() -> None:
    image = np.zeros((100, 100), np.uint8)
    quad = rotated(RECTANGLE, 30)
    cv2.fillConvexPoly(image, quad.round().astype(np.int32), 255)
    left_end = quad[[0, 3]].mean(axis=0)
    cv2.circle(image, left_end.round().astype(int).tolist(), 6, 0, -1)
    crop = crop_line(torch.from_numpy(image).float()[None] / 255, quad_from_points(quad))
    assert crop is not None
    columns = crop[0].mean(dim=0)
    assert columns[:5].mean() < 0.6 < 0.8 < columns[20:50].min()


def test_gradient_of_a_crop() -> None:
    quad = quad_from_points(rotated(np.array([[2, 2], [8, 2], [8, 6], [2, 6]], np.float32), 20))
    image = (0.3 + 0.4 * torch.rand(2, 9, 10, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: crop_line(x, quad), image)


def test_too_thin_to_crop() -> None:
    assert crop_line(torch.zeros(1, 20, 20), np.array([[2, 2], [9, 2], [9, 2], [2, 2]], np.float32)) is None


@pytest.mark.parametrize("degrees", [0, 10, -10, 44])
def test_corner_order(degrees: float) -> None:
    corners = rotated(RECTANGLE, degrees)
    shuffled = corners[[2, 0, 3, 1]]
    assert np.abs(quad_from_points(shuffled) - corners).max() <= 1.01  # cut to whole pixels


def test_largest_region_of_a_mask() -> None:
    mask = np.zeros((50, 60), np.uint8)
    assert quad_from_mask(mask) is None
    mask[5:9, 5:9] = 1
    mask[20:40, 10:50] = 1
    quad = quad_from_mask(mask)
    assert quad is not None
    np.testing.assert_allclose(quad, [[10, 20], [49, 20], [49, 39], [10, 39]])


@pytest.mark.parametrize(
    ("height", "width", "resized"), [(80, 512, 308), (48, 100, 100), (10, 100, 320), (40, 48, 58), (48, 40, 40)]
)
def test_recognizer_input_width_and_padding(height: int, width: int, resized: int) -> None:
    line = torch.full((2, 1, height, width), 0.75)
    x = recognizer_input(line)
    assert x.shape == (2, 3, 48, 320)
    torch.testing.assert_close(x[..., :resized], torch.full((2, 3, 48, resized), 0.5))
    assert not x[..., resized:].any()


def test_recognizer_input_values() -> None:
    line = torch.from_numpy(np.random.default_rng(0).random((1, 3, 96, 200), np.float32))
    expected = F.interpolate(line * 255, (48, 100), mode="bilinear", align_corners=True)
    torch.testing.assert_close(recognizer_input(line)[..., :100], (expected / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)


def test_tall_lines_are_turned() -> None:
    line = normal(1, 1, 100, 40).sigmoid()
    turned = torch.from_numpy(np.ascontiguousarray(np.rot90(line[0, 0].numpy())))[None, None]
    torch.testing.assert_close(recognizer_input(line), recognizer_input(turned))
    assert recognizer_input(line)[..., 119].any() and not recognizer_input(line)[..., 120:].any()


@pytest.mark.parametrize("degrees", [0, 7, -33, 90, 145])
@pytest.mark.parametrize("size", [(64, 96), (90, 80)])
def test_recognizer_points_are_where_crop_and_resize_look(degrees: float, size: tuple[int, int]) -> None:
    """Two bilinear resamplings of a picture that rises evenly are as exact as one."""
    height, width = size
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    quad = quad_from_points(rotated(RECTANGLE, degrees))
    points = recognizer_sampling_grid(quad, size)
    assert points is not None
    inside = ((points >= 1) & (points <= np.array([width - 2, height - 2]))).all(axis=-1)
    assert inside.mean() > 0.9
    for axis, ramp in ((0, x / width), (1, y / height)):
        crop = crop_line(ramp[None], quad)
        assert crop is not None
        shown = (recognizer_input(crop[None])[0, 0, :, : points.shape[1]] + 1) / 2
        wanted = torch.from_numpy(points[..., axis]) / (width, height)[axis]
        torch.testing.assert_close(shown[inside], wanted[inside], rtol=0, atol=1e-9)


def test_points_of_a_line_that_is_too_thin() -> None:
    assert recognizer_sampling_grid(np.array([[1, 1], [9, 1], [9, 1], [1, 1]], np.float32), (20, 20)) is None
