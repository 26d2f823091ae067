"""Draws backgrounds for synthetic pictures, each with a description for the caption.

A background function takes a random generator and a size and returns (picture, description). BACKGROUNDS lists them by
kind. Pictures are uint8 [size, size, 3], red-green-blue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Color = tuple[int, int, int]

PALETTE: dict[str, Color] = {
    "black": (24, 24, 28),
    "white": (244, 244, 240),
    "gray": (132, 134, 138),
    "red": (204, 38, 44),
    "orange": (240, 134, 34),
    "yellow": (248, 212, 48),
    "green": (44, 150, 66),
    "teal": (22, 142, 146),
    "blue": (40, 92, 204),
    "navy": (24, 38, 96),
    "purple": (124, 56, 164),
    "pink": (242, 150, 182),
    "brown": (122, 76, 44),
    "beige": (226, 206, 168),
}
_NAMES = tuple(PALETTE)


@dataclass(frozen=True)
class Background:
    """A drawn background: uint8 [size, size, 3], its kind (a key of BACKGROUNDS) and its description."""

    image: np.ndarray
    kind: str
    description: str


def draw_background(rng: np.random.Generator, size: int) -> Background:
    """A random background of a random kind; it depends on the state of `rng` and the size only."""
    kind = str(rng.choice(_KINDS, p=_WEIGHTS))
    image, description = BACKGROUNDS[kind](rng, size)
    return Background(image, kind, description)


def random_color(rng: np.random.Generator, exclude: tuple[str, ...] = ()) -> tuple[str, Color]:
    """A random colour of PALETTE with jitter, and its name."""
    names = [name for name in _NAMES if name not in exclude]
    name = names[int(rng.integers(len(names)))]
    return name, jitter_color(rng, PALETTE[name])


def jitter_color(rng: np.random.Generator, color: Color, amount: int = 10) -> Color:
    """`color` with a random shift of at most `amount` in each channel."""
    shifts = rng.integers(-amount, amount + 1, 3).tolist()
    red, green, blue = (min(255, max(0, c + d)) for c, d in zip(color, shifts, strict=True))
    return red, green, blue


def _flat(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    name, color = random_color(rng)
    return _filled(size, color), f"plain {name} background"


def _gradient(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    first, first_color = random_color(rng)
    second, second_color = random_color(rng, exclude=(first,))
    if rng.random() < 0.7:
        x, y = _grid(size)
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / 1.2 + 0.5
        return _blend(first_color, second_color, ramp), f"{first} to {second} gradient background"
    distance = _distance_from(rng.uniform(0.2, 0.8, 2), size) / rng.uniform(0.5, 0.9)
    return _blend(second_color, first_color, distance), f"{first} background and a {second} glow"


def _stripes(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    first, first_color, second, second_color = _similar_colors(rng)
    x, y = _grid(size)
    angle = float(rng.choice([0.0, np.pi / 2, np.pi / 4, -np.pi / 4]))
    phase = (np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(4, 10) + rng.random()
    wave = _soft_step(np.abs((phase % 1.0) - 0.5) * 2 - 0.5, size, rng.uniform(0.1, 0.2))
    return _blend(first_color, second_color, wave), f"{first} and {second} striped background"


def _checks(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    first, first_color, second, second_color = _similar_colors(rng)
    cells = int(rng.integers(4, 9))
    x, y = _grid(size)
    wave = ((np.floor(x * cells) + np.floor(y * cells)) % 2).astype(np.float32)
    return _blend(first_color, second_color, wave), f"{first} and {second} checkered background"


def _dots(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    first, first_color, second, second_color = _similar_colors(rng)
    x, y = _grid(size)
    cells, radius = rng.uniform(5, 9), rng.uniform(0.2, 0.36)
    distance = np.hypot((x * cells) % 1 - 0.5, (y * cells) % 1 - 0.5)
    return _blend(first_color, second_color, _soft_step(radius - distance, size, 0.08)), (
        f"{first} background with {second} dots"
    )


def _bricks(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    name, color = random_color(rng, exclude=("black", "yellow", "pink"))
    rows = int(rng.integers(6, 11))
    x, y = _grid(size)
    row = np.floor(y * rows)
    column = x * rows / 2 + 0.5 * (row % 2)
    shade = rng.normal(0, 0.09, (rows + 1, rows + 2))[row.astype(int), np.floor(column).astype(int)]
    mortar = np.maximum(np.abs((y * rows) % 1 - 0.5), 0.25 + np.abs(column % 1 - 0.5) / 2) > 0.44
    image = _shaded(color, 1.0 + shade)
    image[mortar] = np.clip(np.array(color) * 0.55 + 20, 0, 255).astype(np.uint8)
    return image, f"{name} brick wall background"


def _wood(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    x, y = _grid(size)
    name = ("brown", "beige")[int(rng.integers(2))]
    warp = _smooth_noise(rng, size, 3) * 0.9
    grain = np.sin((y * rng.uniform(6, 12) + warp + 0.15 * np.sin(x * 5)) * 2 * np.pi)
    planks = (y[:, 0] * int(rng.integers(3, 6))) % 1 < 0.03
    image = _shaded(jitter_color(rng, PALETTE[name]), 1.0 + 0.10 * grain)
    image[planks] = (image[planks] * 0.5).astype(np.uint8)
    return image, f"{name} wooden background"


def _clouds(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    first, first_color, second, second_color = _similar_colors(rng)
    noise = 0.65 * _smooth_noise(rng, size, 4) + 0.35 * _smooth_noise(rng, size, 10)
    return _blend(first_color, second_color, 0.5 + 0.45 * noise), f"{first} and {second} marbled background"


def _shapes(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """One or two kinds of shapes, scattered over a plain background."""
    name, color = random_color(rng)
    image = _filled(size, color)
    phrases = []
    for _ in range(int(rng.integers(1, 3))):
        shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
        shape_name, shape_color = random_color(rng, exclude=(name,))
        count = int(rng.integers(1, 6))
        for _ in range(count):
            _draw_shape(image, rng, shape, shape_color)
        phrases.append(f"a {shape_name} {shape}" if count == 1 else f"{shape_name} {shape}s")
    return image, f"{name} background with " + " and ".join(phrases)


_SHAPES = ("circle", "ring", "square", "triangle", "star", "line")


def _draw_shape(image: np.ndarray, rng: np.random.Generator, shape: str, color: Color) -> None:
    size = image.shape[0]
    center, radius = rng.uniform(0, size, 2), rng.uniform(0.06, 0.22) * size
    spin = rng.uniform(0, 2 * np.pi)
    middle = (int(center[0]), int(center[1]))
    thickness = max(2, int(radius * 0.25))
    if shape == "circle":
        cv2.circle(image, middle, int(radius), color, -1, cv2.LINE_AA)
    elif shape == "ring":
        cv2.circle(image, middle, int(radius), color, thickness, cv2.LINE_AA)
    elif shape == "line":
        reach = 2.5 * radius * np.array([np.cos(spin), np.sin(spin)])
        start, end = center - reach, center + reach
        cv2.line(image, tuple(map(int, start)), tuple(map(int, end)), color, thickness, cv2.LINE_AA)
    else:
        corners = {"square": 4, "triangle": 3, "star": 10}[shape]
        angles = spin + np.arange(corners) * 2 * np.pi / corners
        radii = np.where(np.arange(corners) % 2, 0.45, 1.0) * radius if shape == "star" else np.full(corners, radius)
        points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(image, [points.round().astype(np.int32)], color, cv2.LINE_AA)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], tuple[np.ndarray, str]]] = {
    "flat": _flat,
    "gradient": _gradient,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "bricks": _bricks,
    "wood": _wood,
    "clouds": _clouds,
    "shapes": _shapes,
}
_KINDS = tuple(BACKGROUNDS)
_WEIGHTS = (0.14, 0.18, 0.09, 0.06, 0.07, 0.08, 0.08, 0.10, 0.20)


def _similar_colors(rng: np.random.Generator) -> tuple[str, Color, str, Color]:
    """Two named colours of similar brightness, so that a text colour can contrast with both."""
    first, first_color = random_color(rng)
    similar = [n for n in _NAMES if n != first and abs(_luma(PALETTE[n]) - _luma(first_color)) < 60]
    second = similar[int(rng.integers(len(similar)))]
    return first, first_color, second, jitter_color(rng, PALETTE[second])


def _luma(color: Color) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _filled(size: int, color: Color) -> np.ndarray:
    return np.full((size, size, 3), color, np.uint8)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, size] and y [size, 1] of the pixel centres in (0, 1), float32."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]


def _distance_from(center: np.ndarray, size: int) -> np.ndarray:
    x, y = _grid(size)
    return np.hypot(x - center[0], y - center[1])


def _soft_step(signed: np.ndarray, size: int, width: float) -> np.ndarray:
    """An antialiased step function of a signed distance: 0 below 0, 1 above, with a ramp of one or two pixels."""
    return np.clip(signed / (width * 128 / size) + 0.5, 0, 1)


def _blend(first: Color, second: Color, weight: np.ndarray) -> np.ndarray:
    """Interpolates from `first` (weight 0) to `second` (weight 1). weight: [size, size], clipped to [0, 1]."""
    weight = np.clip(np.broadcast_to(weight, (max(weight.shape),) * 2), 0, 1).astype(np.float32)[..., None]
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return (start + (end - start) * weight + 0.5).astype(np.uint8)


def _shaded(color: Color, brightness: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(color, np.float32) * brightness[..., None].astype(np.float32), 0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise [size, size] in about [-1, 1], interpolated from a grid of `cells` x `cells` random values."""
    coarse = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
