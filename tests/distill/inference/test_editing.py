"""Pictures are read upright, the model sees a window of them, and nothing outside of the soft edge changes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anytext2.glyphs.render import fill_polygons
from distill.inference.editing import choose_window, edge_width, load_mask, load_picture, soft_mask, window_notice


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.integers(0, 256, (90, 140, 3), np.uint8), (0, 0), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_read_as_it_is_seen(photograph, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "photograph.png"
    Image.fromarray(photograph).save(file, exif=exif)
    read = load_picture(file, "image")
    assert read.shape == ((140, 90, 3) if orientation >= 5 else (90, 140, 3))
    with Image.open(file) as image:
        assert np.array_equal(read, load_picture(image, "image"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "image nowhere.png: image missing"),
        (Path(__file__), "no known format"),
        (np.zeros((4, 4, 2), np.uint8), r"expected uint8 \[H, W, 3\], got \[4, 4, 2\]"),
        (np.zeros((4, 4, 3)), r"got float64 \[4, 4, 3\]"),
        (3, "got int"),
    ],
)
def test_what_is_no_picture_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_picture(source, "image")


def test_a_mask_keeps_its_transparency(tmp_path):
    mask = np.full((10, 20, 4), 255, np.uint8)
    mask[:, :10, 3] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    read = load_mask(tmp_path / "mask.png")
    assert isinstance(read, Image.Image) and np.array_equal(np.array(read), mask)
    assert load_picture(tmp_path / "mask.png", "mask").min() == 255


@pytest.mark.parametrize(
    ("size", "place", "side"),
    [
        ((90, 140), box(10, 10, 60, 40), 128),
        ((90, 140), box(100, 60, 139, 89), 64),
        ((3000, 4000), box(3500, 100, 3900, 250), 1024),
        ((4000, 300), box(10, 10, 290, 3900), 1024),
        ((100, 100), box(5, 5, 90, 90), 1024),
    ],
)
def test_the_window_holds_the_places_and_is_small_enough(size, place, side):
    window = choose_window(size, [place], side, 16)
    height, width = window.extent
    assert window.left >= 0 and window.left + width <= size[1] and window.top >= 0 and window.top + height <= size[0]
    moved = window.to_model(place)
    assert moved.min() >= 0 and moved[:, 0].max() <= window.inner[1] and moved[:, 1].max() <= window.inner[0]
    assert window.inner[0] * window.inner[1] <= 1.02 * side * side
    assert all(n % 16 == 0 and n - 16 < m <= n for n, m in zip(window.size, window.inner, strict=True))
    whole = max(size) <= side
    assert (window.extent == size) >= whole and (window_notice(window, size) == "") == whole


def test_a_thin_place_at_the_edge_of_a_large_picture_is_not_lost():
    place, size = box(3990, 10, 4000, 2000), (2000, 4000)
    window = choose_window(size, [place], 64, 16)
    mask = window.cut_mask(fill_polygons([place], size))
    assert mask.any() and mask.shape == window.size
    moved = window.to_model(place)
    assert fill_polygons([moved], window.inner).any() and window.inner[0] * window.inner[1] <= 1.1 * 64 * 64


@pytest.mark.parametrize("side", [64, 256])
def test_outside_of_the_soft_edge_every_pixel_comes_back(photograph, side):
    places = [box(20, 20, 60, 35), np.array([(90, 50), (120, 60), (100, 80)], np.float32)]
    window = choose_window((90, 140), places, side, 16)
    edge = edge_width(window, 128)
    weight = soft_mask(fill_polygons(places, (90, 140)), edge)
    drawn = 255 - window.cut(photograph)
    result = window.put_back(photograph, drawn, weight)
    assert window.cut(photograph).shape == (*window.size, 3)
    far = cv2.dilate((weight >= 1).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=int(np.ceil(edge))) == 0
    assert np.abs(result.astype(int) - photograph)[far].max() == 0 and far.mean() > 0.4
    assert np.array_equal(result[weight == 0], photograph[weight == 0])
    inside = weight == 1
    assert np.abs(result.astype(int) - (255 - photograph.astype(int)))[inside].mean() < (1 if side == 256 else 12)
    assert len(np.unique(weight)) > 3  # the edge is soft
