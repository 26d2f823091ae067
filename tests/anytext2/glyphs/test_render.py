"""Drawing against expectations that are computed another way: geometry, counts and centroids."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from anytext2.core.rng import RandomSource
from anytext2.glyphs import render
from anytext2.glyphs.fonts import Font, FontTable, load_font_table


@pytest.fixture(scope="module")
def table() -> FontTable:
    return load_font_table()


@pytest.fixture(scope="module")
def font(table: FontTable) -> Font:
    return table.default


class _Fixed(np.random.Generator):
    """A generator whose next uniform number is known."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.value = value

    def random(self, *args, **kwargs) -> float:  # type: ignore[override]
        return self.value


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)


def _turned(polygon: np.ndarray, degrees: float) -> np.ndarray:
    center = polygon.mean(0)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((polygon - center) @ np.array([[cos, sin], [-sin, cos]]) + center).astype(np.float32)


def _ink_bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def _glyph_page(
    text: str, polygon: np.ndarray, size: tuple[int, int], font: Font, ink_threshold: float = 0.1
) -> np.ndarray:
    page = np.zeros(size, np.uint8)
    render.glyph_page_bitmap(text, polygon, font, ink_threshold).paste_onto(page)
    return page


def _font_hint(
    image: np.ndarray,
    polygon: np.ndarray,
    area: tuple[float, float] = (1.0, 1.0),
    augment: bool = False,
    rng: RandomSource | None = None,
) -> np.ndarray:
    size = (image.shape[0], image.shape[1])
    hint = np.zeros(size, np.uint8)
    assert rng is not None or not augment, "augmentation draws random numbers"
    transform = render.random_hint_transform(rng, size) if augment and rng is not None else None
    render.font_hint_bitmap(render.stroke_bitmap(image, polygon, transform), polygon, area, rng).paste_onto(hint)
    return hint


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


# Polygons and positions


def test_a_position_is_the_filled_polygon_wherever_it_lies() -> None:
    """The window in which it is drawn must not show, at half pixels and at the page's edges neither."""
    rng = np.random.default_rng(3)
    kernel = np.ones((3, 3), np.uint8)
    for _ in range(200):
        polygon = (rng.integers(-30, 130, 2) + rng.integers(-80, 80, (4, 2)) / 2).astype(np.float32)
        whole = render.fill_polygons([polygon], (60, 90))
        np.testing.assert_array_equal(render.position_mask(polygon, (60, 90)), whole)
        for value, turns, move in ((0.75, 1, cv2.dilate), (0.92, 2, cv2.dilate)):
            moved = render.position_mask(polygon, (60, 90), _Fixed(value))
            np.testing.assert_array_equal(moved, move(whole, kernel, iterations=turns))


def test_fill_covers_the_corner_pixels_and_unites() -> None:
    mask = render.fill_polygons([_box(3, 4, 9, 11), _box(20, 1, 22, 2)], (16, 32))
    expected = np.zeros((16, 32), np.uint8)
    expected[4:12, 3:10] = 1
    expected[1:3, 20:23] = 1
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == np.uint8
    assert render.fill_polygons([], (5, 6)).sum() == 0


def test_fill_of_a_slanted_polygon_agrees_with_half_planes() -> None:
    polygon = np.array([(10, 5), (50, 15), (42, 40), (7, 30)], np.float32)
    mask = render.fill_polygons([polygon], (48, 64))
    y, x = np.mgrid[:48, :64]
    distances = []
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        distances.append(((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0))
    inside = np.min(distances, axis=0)  # signed distance to the nearest edge's line
    assert mask[inside >= 0].all() and not mask[inside < -1].any()


def test_polygons_beyond_the_page_are_cut() -> None:
    mask = render.fill_polygons([_box(-20, -5, 3, 2)], (10, 10))
    assert mask[:3, :4].all() and mask.sum() == 12
    assert render.fill_polygons([_box(30, 30, 40, 40)], (10, 10)).sum() == 0


@pytest.mark.parametrize(
    ("draw", "moved"),
    [(0.0, 0), (0.69, 0), (0.7, 1), (0.79, 1), (0.8, -1), (0.89, -1), (0.9, 2), (0.94, 2), (0.95, -2), (0.99, -2)],
)
def test_position_edge_moves_by_whole_pixels(draw: float, moved: int) -> None:
    mask = render.position_mask(_box(20, 30, 60, 50), (96, 128), _Fixed(draw))
    expected = np.zeros((96, 128), np.uint8)
    expected[30 - moved : 51 + moved, 20 - moved : 61 + moved] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("draw", "moved"), [(0.5, 0), (0.75, 1), (0.85, 0), (0.92, 2), (0.97, 0)])
def test_thin_lines_are_never_shrunk(draw: float, moved: int) -> None:
    # 18 pixels of a page of 512 are thin, and so are 4 of 128.
    for size, height in ((512, 18), (128, 4)):
        mask = render.position_mask(_box(20, 30, 100, 30 + height), (size, size), _Fixed(draw))
        assert mask.sum() == (81 + 2 * moved) * (height + 1 + 2 * moved)


def test_position_without_chance_is_exact() -> None:
    assert render.position_mask(_box(2, 3, 8, 9), (20, 20)).sum() == 49


# Glyph lines


@pytest.mark.parametrize("text", ["OPEN", "你好", "a", "Wellington Street 123"])
def test_glyph_line_is_centred_and_as_large_as_fits(text: str, font: Font) -> None:
    page = render.glyph_line(text, font)
    assert page.shape == (80, 512) and page.dtype == np.uint8 and set(np.unique(page)) == {0, 1}
    left, top, right, bottom = _ink_bounds(page)
    assert abs((left + right) / 2 - 255.5) < 6 and abs((top + bottom) / 2 - 39.5) < 3
    assert bottom - top <= 74 and right - left <= 465
    assert bottom - top >= 66 or right - left >= 440  # one side is full


def test_blank_glyph_line_is_empty(font: Font) -> None:
    assert render.glyph_line(" ", font).sum() == 0
    assert _glyph_page(" ", _box(1, 1, 30, 10), (32, 32), font).sum() == 0


def test_glyph_line_shows_the_letters(font: Font) -> None:
    # The bar of an L is at the bottom, of a T at the top.
    letters = {text: render.glyph_line(text, font)[:, 200:312] for text in "LT"}
    assert letters["L"][40:].sum() > 1.3 * letters["L"][:40].sum()
    assert letters["T"][40:].sum() < 0.8 * letters["T"][:40].sum()


# Glyph pages


@pytest.mark.parametrize("degrees", [0.0, 25.0, -40.0, 70.0])
@pytest.mark.parametrize("text", ["OPEN", "早餐店"])
def test_glyph_page_fills_its_polygon_and_nothing_else(text: str, degrees: float, font: Font) -> None:
    polygon = _turned(_box(40, 90, 200, 140), degrees)
    page = _glyph_page(text, polygon, (256, 256), font)
    assert page.dtype == np.uint8 and set(np.unique(page)) == {0, 1}
    grown = cv2.dilate(render.fill_polygons([polygon], (256, 256)), np.ones((5, 5), np.uint8))
    assert not (page & ~grown).any()
    ys, xs = np.nonzero(page)
    assert np.hypot(xs.mean() - polygon[:, 0].mean(), ys.mean() - polygon[:, 1].mean()) < 8
    along = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    across = np.array([-along[1], along[0]])
    points = np.stack([xs, ys], 1)
    assert np.ptp(points @ along) > 0.88 * 160, "the letters are spaced out over the length"
    assert np.ptp(points @ across) > 0.8 * 50


@pytest.mark.parametrize("degrees", [20.0, -30.0])
def test_turned_text_is_the_upright_text_turned(degrees: float, font: Font) -> None:
    polygon = _box(48, 104, 208, 152)
    upright = _glyph_page("Fresh", polygon, (256, 256), font)
    turned = _glyph_page("Fresh", _turned(polygon, degrees), (256, 256), font)
    center = polygon.mean(0).tolist()
    back = cv2.warpAffine(turned, cv2.getRotationMatrix2D(center, degrees, 1.0), (256, 256), flags=cv2.INTER_NEAREST)
    assert _overlap(upright, back) > 0.7
    mirrored = upright[::-1]
    assert _overlap(mirrored, back) < 0.4


def test_the_first_corner_does_not_matter(font: Font) -> None:
    polygon = _turned(_box(40, 90, 200, 140), 12)
    pages = [_glyph_page("Tea", np.roll(polygon, n, 0)[::step], (256, 256), font) for n in range(4) for step in (1, -1)]
    assert all(_overlap(pages[0], page) > 0.9 for page in pages[1:])


def test_upright_high_boxes_are_written_downwards(font: Font) -> None:
    page = _glyph_page("口口口", _box(100, 20, 140, 200), (220, 256), font)
    rows = np.nonzero(page.any(1))[0]
    gaps = np.nonzero(np.diff(rows) > 1)[0]
    groups = np.split(rows, gaps + 1)
    # A box's two bars join its walls: three characters are three groups of rows, evenly spaced.
    assert len(groups) == 3
    centers = [group.mean() for group in groups]
    assert abs((centers[1] - centers[0]) - (centers[2] - centers[1])) < 3
    assert rows.min() < 26 and rows.max() > 194
    assert np.ptp(np.nonzero(page.any(0))[0]) > 24


def test_narrow_words_stay_level_where_that_is_larger(font: Font) -> None:
    page = _glyph_page("ll", _box(10, 10, 26, 40), (48, 48), font)
    columns = np.nonzero(page.any(0))[0]
    assert (np.diff(columns) > 1).sum() == 1, "two strokes side by side"
    assert np.ptp(np.nonzero(page.any(1))[0]) > 18, "one below the other, they would be 14 high"


def test_ink_threshold_makes_strokes_thinner(font: Font) -> None:
    polygon = _box(10, 10, 110, 40)
    areas = [_glyph_page("国家", polygon, (64, 128), font, threshold).sum() for threshold in (0.0, 0.1, 0.5, 0.9)]
    assert areas == sorted(areas, reverse=True) and areas[0] > 1.15 * areas[2]


def test_scaled_pages_show_the_same_text(font: Font) -> None:
    polygon = _turned(_box(20, 30, 110, 60), 8)
    small = _glyph_page("Open", polygon, (96, 128), font, 0.5)
    large = _glyph_page("Open", polygon * 2, (192, 256), font, 0.5)
    shrunk = (cv2.resize(large.astype(np.float32), (128, 96), interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)
    assert _overlap(small, shrunk) > 0.6


@pytest.mark.parametrize(
    "polygon",
    [_box(-30, -10, 60, 20), _box(200, 200, 300, 230), _box(5, 5, 5, 5), _box(0, 10, 40, 10), _box(0, 0, 1, 1)],
)
def test_odd_polygons_draw_what_is_on_the_page(polygon: np.ndarray, font: Font) -> None:
    page = _glyph_page("Text", polygon, (64, 64), font)
    allowed = cv2.dilate(render.fill_polygons([polygon], (64, 64)), np.ones((5, 5), np.uint8))
    assert page.shape == (64, 64) and not (page & ~allowed).any()
    assert _font_hint(np.zeros((64, 64, 3), np.uint8), polygon).shape == (64, 64)


# Font hints


def _picture(ink: tuple[int, int, int], paper: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture with three bars of ink 4 pixels wide, and the mask of the bars."""
    bars = np.zeros((64, 128), np.uint8)
    for left in (24, 60, 96):
        bars[20:44, left : left + 4] = 1
    return np.where(bars[..., None] == 1, np.uint8(ink), np.uint8(paper)).astype(np.uint8), bars


def test_font_hint_marks_what_is_darker_than_its_surroundings() -> None:
    polygon = _box(10, 14, 116, 50)
    dark, bars = _picture((20, 20, 20), (230, 230, 230))
    np.testing.assert_array_equal(_font_hint(dark, polygon), bars)
    light, _ = _picture((230, 230, 230), (20, 20, 20))
    hint = _font_hint(light, polygon)
    rim = cv2.dilate(bars, np.ones((11, 11), np.uint8)) & ~bars
    assert not (hint & bars).any() and hint.any() and not (hint & ~rim).any()


def test_font_hint_weighs_colours_as_the_eye_does() -> None:
    # Blue is darker than green: with red and blue exchanged, the polarity would turn round.
    hints = [_font_hint(_picture(ink, paper)[0], _box(10, 14, 116, 50)) for ink, paper in _RED_AND_BLUE]
    bars = _picture((0, 0, 0), (1, 1, 1))[1]
    assert (hints[0] & bars).sum() == bars.sum() and (hints[1] & bars).sum() == 0


_RED_AND_BLUE = (((0, 0, 200), (200, 0, 0)), ((200, 0, 0), (0, 0, 200)))


def test_font_hint_stays_inside_the_polygon() -> None:
    dark, bars = _picture((20, 20, 20), (230, 230, 230))
    hint = _font_hint(dark, _box(10, 14, 62, 50))
    expected = bars.copy()
    expected[:, 63:] = 0
    np.testing.assert_array_equal(hint, expected)


def test_font_hint_keeps_the_share_that_is_asked_for() -> None:
    # Vertical hatching is dark everywhere along the line, so that the kept length can be read off.
    image = np.full((64, 256, 3), 255, np.uint8)
    image[:, ::2] = 0
    polygon = _box(20, 20, 219, 45)
    whole = _font_hint(image, polygon).any(0).sum()
    starts = set()
    for seed in range(30):
        columns = _font_hint(image, polygon, (0.6, 0.8), rng=np.random.default_rng(seed)).any(0)
        assert 0.57 <= columns.sum() / whole <= 0.83
        starts.add(int(np.argmin(columns[20:220:2])))
    assert len(starts) > 10, "the gap is at another place each time"


def test_font_hint_augmentation_moves_the_strokes() -> None:
    dark, bars = _picture((20, 20, 20), (230, 230, 230))
    polygon = _box(10, 14, 116, 50)
    first, again, other = (
        _font_hint(dark, polygon, augment=True, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first != bars).any()
    assert 0.6 * bars.sum() < first.sum() < 1.5 * bars.sum()
