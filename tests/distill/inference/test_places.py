"""Places: from masks as the official program reads them, from boxes and polygons, and moved to fit their texts."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image, features

from anytext2.glyphs import reference_render, render
from anytext2.glyphs.fonts import load_font_table
from anytext2.glyphs.rasters import default_page_font
from distill.inference.places import (
    Place,
    match_places,
    moved_to_fit,
    parse_box,
    parse_polygon,
    place_from_box,
    place_from_polygon,
    places_from_mask,
)
from tests.helpers.models.official_golden import read_golden
from tests.helpers.paths import ROOT

SIZE = (512, 512)
RECORDED = ROOT / "tests" / "golden" / "reference_data" / "samples.npz"
ANNOTATIONS = json.loads(RECORDED.with_suffix(".json").read_text(encoding="utf-8"))


def drawn_mask(shape: tuple[int, int, int], background: tuple[int, int, int]) -> np.ndarray:
    """A rectangle, a rotated one, an arch, a column and a crooked quadrilateral: uint8 [512, 512, 3]."""
    mask = np.full((512, 512, 3), background, np.uint8)
    cv2.rectangle(mask, (40, 30), (300, 90), shape, -1)
    cv2.fillPoly(mask, [cv2.boxPoints(((380, 140), (200, 50), -30)).astype(np.int32)], shape)
    cv2.ellipse(mask, (180, 330), (150, 120), 0, 180, 360, shape, 50)
    cv2.rectangle(mask, (430, 250), (490, 490), shape, -1)
    cv2.fillPoly(mask, [np.array([[40, 420], [350, 440], [345, 490], [45, 495]])], shape)
    return mask


def centers(places: list[Place]) -> list[tuple[int, int]]:
    return [tuple(np.argwhere(place.position_mask(SIZE)).mean(0)[::-1].round().astype(int)) for place in places]


def test_a_drawn_mask_has_a_place_for_each_shape_in_the_reference_order():
    mask = drawn_mask((255,) * 3, (0,) * 3)
    places = places_from_mask(mask, SIZE, "top-down")
    assert [len(place.polygon) for place in places[:2]] == [4, 4] and len(places[2].polygon) > 8
    np.testing.assert_array_equal(
        sorted(map(tuple, places[0].polygon.tolist())), [(40, 30), (40, 90), (300, 30), (300, 90)]
    )
    union = np.bitwise_or.reduce([place.position_mask(SIZE) for place in places])
    assert union[mask[..., 0] > 0].all()
    # bands of 102 pixels, by the shapes' centres
    bands = [(y // 102, x // 102) for x, y in centers(places)]
    assert bands == sorted(bands)
    bands = [(x // 102, y // 102) for x, y in centers(places_from_mask(mask, SIZE, "left-right"))]
    assert bands == sorted(bands)


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: 255 - mask,
        lambda mask: np.where(mask, np.uint8([200, 30, 30]), np.uint8([250, 250, 250])).astype(np.uint8),
        lambda mask: Image.fromarray(mask),
        lambda mask: Image.fromarray(255 - mask[..., 0]).convert("1"),
        lambda mask: Image.fromarray(mask).convert("P"),
        lambda mask: mask[..., 0] > 0,
        lambda mask: mask[..., 0] / 255.0,
        lambda mask: mask[..., 0].astype(np.uint16) * 257,
        lambda mask: Image.fromarray(np.dstack([np.full_like(mask, 255), mask[..., 0]])),
        lambda mask: np.dstack([mask * 0, mask[..., :1]]),
    ],
    ids=["black", "red", "PIL", "1 bit", "palette", "bool", "float", "16 bit", "white on nothing", "black on nothing"],
)
def test_the_colours_of_a_mask_do_not_matter(change):
    mask = drawn_mask((255,) * 3, (0,) * 3)
    expected = places_from_mask(mask, SIZE, "top-down")
    found = places_from_mask(change(mask), SIZE, "top-down")
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.polygon, b.polygon)


def test_a_lossy_mask_of_another_size_gives_the_places_of_the_picture(tmp_path):
    mask = drawn_mask((0,) * 3, (255,) * 3)
    Image.fromarray(mask).resize((1024, 1024)).save(tmp_path / "mask.jpg", quality=60)
    found = places_from_mask(Image.open(tmp_path / "mask.jpg"), SIZE, "top-down")
    for a, b in zip(found, places_from_mask(mask, SIZE, "top-down"), strict=True):
        assert (a.position_mask(SIZE) != b.position_mask(SIZE)).sum() < 300


@pytest.mark.parametrize(("sample", "lines", "share"), [(0, (1, 2, 3), 0.02), (1, (0, 1, 2, 3), 0.0)])
def test_the_reference_positions_come_back_from_their_mask(sample, lines, share):
    """share: of a rotated shape's pixels that the official program adds with the simplified polygon."""
    with np.load(RECORDED) as file:
        masks = [np.unpackbits(file[f"{sample}/position{n}"]).reshape(512, 512) for n in lines]
    found = places_from_mask(np.bitwise_or.reduce(masks), SIZE, "top-down")
    assert len(found) == len(masks)
    for mask in masks:
        best = max((place.position_mask(SIZE) for place in found), key=lambda area: int((area & mask).sum()))
        assert best[mask > 0].all() and (best != mask).sum() <= share * mask.sum()


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")
@pytest.mark.parametrize(("sample", "line"), [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)])
def test_a_text_in_a_mask_is_drawn_as_the_reference_draws_it(sample, line):
    """The glyph page of a recorded line, from the mask of its place, its text and the font: equal to the last pixel."""
    with np.load(RECORDED) as file:
        mask, page = (np.unpackbits(file[f"{sample}/{kind}{line}"]).reshape(512, 512) for kind in ("position", "page"))
    text = ANNOTATIONS["samples"][sample]["texts"][line]
    color = ANNOTATIONS["data"]["data_list"][sample]["annotations"][line].get("color")
    (place,) = places_from_mask(mask, SIZE, "top-down")
    drawn, font = np.zeros(SIZE, np.uint8), load_font_table().default
    bitmap = reference_render.glyph_page_bitmap(text, place.polygon, SIZE, font, color and tuple(color))
    bitmap.paste_onto(drawn)
    assert np.array_equal(drawn, page)


def test_the_recorded_batch_has_the_positions_of_its_mask():
    golden = read_golden("b_batch")
    recorded = [golden[f"positions_{n}_u8"][0, ..., 0] // 255 for n in (0, 1)]
    found = places_from_mask(golden["hint_u8"][0], (256, 256), "top-down")
    assert len(found) == 2
    for mask in recorded:
        assert sum(np.array_equal(place.position_mask((256, 256)), mask) for place in found) == 1


def reference_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The official program's steps for a mask uint8 [H, W] that is white on black, top-down."""
    _, labels, stats, centroids = cv2.connectedComponentsWithStats(mask)
    parts = [n for n in range(1, len(stats)) if stats[n, cv2.CC_STAT_AREA] >= 20]
    polygons = []
    for n in sorted(parts, key=lambda n: (centroids[n][1] // 102, centroids[n][0] // 102)):
        contours, _ = cv2.findContours((labels == n).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outer = max(contours, key=cv2.contourArea)
        polygons.append(cv2.approxPolyDP(outer, 0.01 * cv2.arcLength(outer, True), True)[:, 0])
    return polygons


def test_the_polygons_are_those_of_the_official_program():
    mask = drawn_mask((255,) * 3, (0,) * 3)[..., 0]
    mask[200:203, 3:6] = 255  # a speck
    for place, polygon in zip(places_from_mask(mask, SIZE, "top-down"), reference_polygons(mask), strict=True):
        np.testing.assert_array_equal(place.polygon, polygon)


def thin_line() -> np.ndarray:
    mask = np.zeros((512, 512), np.uint8)
    mask[100, 50:400] = 255
    return mask


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros((512, 512), np.uint8), "mask: empty"),
        (np.full((512, 512, 3), 255, np.uint8), "mask: empty"),
        (np.pad(np.full((2, 2), 255, np.uint8), 255), "mask: no shape of 20 pixels"),
        (np.zeros((100, 400), np.uint8), "400 x 100 pixels do not fit a picture of 512 x 512"),
        (np.kron(np.indices((32, 32)).sum(0) % 4 == 0, np.pad(np.ones((10, 10)), 3)), "shapes; a mask has one plain"),
        (thin_line(), "the shape at 224,100 is only a thin line"),
        (np.zeros((0, 5)), "expected a picture"),
    ],
)
def test_a_mask_that_is_none_is_one_line(mask, told):
    with pytest.raises(ValueError, match=told) as caught:
        places_from_mask(mask, SIZE, "top-down")
    assert "\n" not in str(caught.value)


def test_an_unknown_order_is_told():
    with pytest.raises(ValueError, match="order: 'down' is not known; use top-down or left-right"):
        places_from_mask(thin_line(), SIZE, "down")  # type: ignore[arg-type]


def test_boxes_and_polygons_of_the_command_line():
    assert parse_box(" 40,60, 400,140.5") == (40, 60, 400, 140.5)
    assert parse_polygon("40,60 400,80  390,150").tolist() == [[40, 60], [400, 80], [390, 150]]
    place = place_from_box(parse_box("0,0,512,512"), SIZE)
    assert place.position_mask(SIZE).all() and place.polygon.dtype == np.float32
    bow_tie = place_from_polygon([[60, 120], [260, 60], [60, 60], [260, 120]], SIZE)
    assert cv2.contourArea(bow_tie.polygon) == 200 * 60


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: parse_box("1,2,3"), "as in 40,60,400,140"),
        (lambda: parse_box("a,b,c,d"), "as in 40,60,400,140"),
        (lambda: parse_box("1,2,3,inf"), "as in 40,60,400,140"),
        (lambda: parse_polygon("1,2 3,4"), "three or more corners"),
        (lambda: parse_polygon("1,2 3,4 5"), "three or more corners"),
        (lambda: place_from_box((40, 60, 600, 140), SIZE), "x = 600 is outside of the picture of 512 x 512"),
        (lambda: place_from_box((40, -5, 60, 140), SIZE), "y = -5 is outside"),
        (lambda: place_from_box((40, 60, 30, 140), SIZE), "right and bottom must be greater"),
        (lambda: place_from_box(["a", 1, 2, 3], SIZE), "four numbers are needed"),
        (lambda: place_from_polygon([[0, 0], [10, 10], [20, 20]], SIZE), "has no area"),
        (lambda: place_from_polygon([[0, 0], [600, 10], [20, 20]], SIZE), "x = 600 is outside"),
        (lambda: place_from_polygon("abc", SIZE), "three or more corners"),
        (lambda: match_places([], 2), "0 for 2 texts; add 2"),
    ],
)
def test_a_wrong_place_is_one_line_that_names_it(make, told):
    with pytest.raises(ValueError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_places_that_are_left_over_are_told():
    places = [place_from_box((10, 10, 100, 40 + n), SIZE) for n in range(3)]
    kept, notes = match_places(places, 2)
    assert kept == places[:2] and notes == ["1 of 3 places are not used, there are 2 texts"]
    assert match_places(places, 3) == (places, [])


def test_a_bent_place_is_told():
    places = places_from_mask(drawn_mask((255,) * 3, (0,) * 3), SIZE, "top-down")
    _, notes = match_places(places, 5)
    assert len(notes) == 1 and notes[0].startswith("place 3 is bent")


@pytest.mark.parametrize("like_reference", [False, True])
def test_a_place_moves_to_its_text(like_reference):
    place = place_from_box((130, 130, 400, 330), SIZE)
    moved = moved_to_fit(place, "OPEN", SIZE, like_reference=like_reference)
    font = default_page_font("OPEN")
    ink = np.zeros(SIZE, np.uint8)
    render.glyph_page_bitmap("OPEN", place.polygon, font).paste_onto(ink)
    left, top, width, height = cv2.boundingRect(moved.position_mask(SIZE))
    x, y, ink_width, ink_height = cv2.boundingRect(ink)
    np.testing.assert_allclose([left, top, width, height], [x, y, ink_width, ink_height], atol=4)
    assert height < 100


def test_a_place_at_the_edge_moves_to_its_text_alone():
    place = place_from_box((5, 5, 300, 280), SIZE)
    moved = moved_to_fit(place, "OPEN", SIZE)
    assert moved.polygon[:, 1].min() > 80 and moved.polygon[:, 0].min() >= 4
    assert moved_to_fit(place, "OPEN", SIZE, like_reference=True).polygon[:, 0].min() == 0  # reaches the edge there


def test_a_text_in_several_parts_keeps_its_place():
    place = place_from_box((5, 200, 500, 260), SIZE)
    assert moved_to_fit(place, "I I", SIZE) is place
