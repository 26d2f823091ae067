"""Places for texts without any: rows of one or more texts, in reading order, inside the margins.

Texts stand below each other, each as large as its length and script allow. Where that makes the letters too small, as
of many short texts or in a wide picture, some stand side by side. The seed decides what a designer is free to decide:
alignment, emphasis, how much of the picture the texts fill and where in the picture they stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anytext2.core.rng import RandomSource, hash_rng, uniform
from anytext2.glyphs.fonts import REFERENCE_SIZE
from anytext2.glyphs.rasters import default_page_font
from distill.inference.letter_size import least_height, letter_share
from distill.inference.places import Place

MARGINS = (0.08, 0.03)
"""Shares of the shorter side that stay free: as a rule, and where letters would be too small otherwise."""

_LEAST_MARGIN = 4.0  # pixels
_LEAST_LETTERS = 8.0  # pixels; below that a letter cannot be drawn at all
_GREATEST = 0.44  # letter height as a share of the picture's shorter side
_BORDER = 1.5  # pixels between a text's ink and the edge of its place, as in drawn data sets
_GAP = 0.4  # between two rows, in heights of the lower one
_SIDE_GAP = 0.8  # between two texts of a row, in its height
_LEAST_GAP = 0.03  # between two texts, as a share of the shorter side
_MUCH_LARGER = 1.25  # letters side by side are worth it if they are larger by this factor
_MOST_CONTRAST = 2.5  # between the letter heights of texts that are as wide as each other
_SIMILAR = 0.65  # least share of the highest letters that a text needs to set the size of the others
_LARGEST_SIDE = 2048  # of a picture that an error message proposes


@dataclass(frozen=True)
class _Text:
    """A text to place. width, height: of its ink in em. share: letter height in em.

    least, most: font sizes in pixels per em.
    """

    text: str
    width: float
    height: float
    share: float
    least: float
    most: float


@dataclass(frozen=True)
class _Style:
    """What the seed decides.

    sizes: all letters as high as each other ("even"), the first text higher ("headline"), or all texts as wide as each
    other ("block"), which is also taken where a long text would make the others too small. emphasis: letter height
    after a headline, in its letter heights. width, fill: shares of the room's width and height that texts may take.
    flush: rows begin at one edge instead of being centred. across, down: where the texts stand in the room, 0 to 1.
    """

    sizes: str = "even"
    emphasis: float = 1.0
    width: float = 1.0
    fill: float = 1.0
    flush: bool = False
    across: float = 0.5
    down: float = 0.5


@dataclass(frozen=True)
class _Layout:
    """Texts in rows, with their font sizes in pixels per em."""

    rows: list[list[_Text]]
    sizes: list[list[float]]

    @property
    def smallest(self) -> float:
        """The smallest letters, in their least height."""
        pairs = zip(self.rows, self.sizes, strict=True)
        return min(size / text.least for row, sizes in pairs for text, size in zip(row, sizes, strict=True))

    def widths(self) -> list[list[float]]:
        """Of the places of each row."""
        pairs = zip(self.rows, self.sizes, strict=True)
        return [[size * text.width + 2 * _BORDER for text, size in zip(*pair, strict=True)] for pair in pairs]

    def heights(self) -> list[list[float]]:
        """Of the places of each row."""
        pairs = zip(self.rows, self.sizes, strict=True)
        return [[size * text.height + 2 * _BORDER for text, size in zip(*pair, strict=True)] for pair in pairs]


def automatic_layout(
    texts: Sequence[str], size: tuple[int, int], seed: int, smallest_letter: float = 0.0
) -> list[Place]:
    """One place for each text; the same for the same arguments.

    size: (width, height) of the picture. smallest_letter: least height in pixels of Latin letters; Chinese characters
    may be smaller (`least_height`).
    Raises ValueError where the texts do not fit, naming what would work.
    """
    if not texts:
        return []
    items = [_measure(text, size, smallest_letter) for text in texts]
    style = _random_style(hash_rng(seed, 0, 0, "layout"), len(items))
    for margin in MARGINS:
        room = _room(size, margin)
        layout = _best_layout(items, room, _least_gap(size), style)
        if layout is not None:
            return _places(layout, size, room, style)
    raise ValueError(_what_would_work(items, size))


def _measure(text: str, size: tuple[int, int], smallest_letter: float) -> _Text:
    font = default_page_font(text)
    box, share = font.ink_box(font.supported(text) or text).scaled(1 / REFERENCE_SIZE), letter_share(text, font)
    least = float(math.ceil(max(least_height(text, smallest_letter), _LEAST_LETTERS) / share))  # fonts have whole sizes
    most = max(least, _GREATEST * min(size) / share)
    return _Text(text, max(box.width, 0.1), max(box.height, 0.1), share, least, most)


def _random_style(rng: RandomSource, n_texts: int) -> _Style:
    kind, flush, across, down = (rng.random() for _ in range(4))
    return _Style(
        sizes="even" if kind < 0.3 else ("headline" if kind < 0.7 else "block"),
        emphasis=uniform(rng, 0.6, 0.8),
        width=uniform(rng, 0.75, 1.0),
        fill=uniform(rng, 0.7, 0.95),
        flush=flush < 0.35,
        across=0.5 if across < 0.6 or n_texts == 1 else (0.15 if across < 0.85 else 0.85),
        down=0.5 if down < 0.4 else (0.35 if down < 0.7 else (0.15 if down < 0.85 else 0.8)),
    )


def _room(size: tuple[int, int], margin: float) -> tuple[float, float]:
    """Width and height inside the margins."""
    free = 2 * max(_LEAST_MARGIN, margin * min(size))
    return size[0] - free, size[1] - free


def _least_gap(size: tuple[int, int]) -> float:
    return max(3.0, _LEAST_GAP * min(size))


def _best_layout(items: Sequence[_Text], room: tuple[float, float], gap: float, style: _Style) -> _Layout | None:
    """One text a row, unless letters of one size would be much larger in fewer rows; None where nothing fits."""
    best: _Layout | None = None
    for n_rows in range(len(items), 0, -1):
        layout = _fit_rows(_split_evenly(items, n_rows), room, gap, replace(style, sizes="even"))
        if layout is not None and (best is None or layout.smallest > _MUCH_LARGER * best.smallest):
            best = layout
    return best and _fit_rows(best.rows, room, gap, style)


def _split_evenly(items: Sequence[_Text], n_rows: int) -> list[list[_Text]]:
    """The texts in `n_rows` rows, in order, so that the longest row is as short as possible."""
    lengths = [text.width * text.least for text in items]
    best: list[tuple[float, list[int]]] = [(0.0, []), *[(math.inf, list[int]())] * len(items)]
    for _ in range(n_rows):
        best = [
            min(
                ((max(best[start][0], sum(lengths[start:end])), [*best[start][1], start]) for start in range(end)),
                default=(math.inf, list[int]()),
            )
            for end in range(len(items) + 1)
        ]
    starts = [*best[len(items)][1], len(items)]
    return [list(items[start:end]) for start, end in zip(starts, starts[1:], strict=False)]


def _fit_rows(rows: list[list[_Text]], room: tuple[float, float], gap: float, style: _Style) -> _Layout | None:
    """The font sizes of rows: the greatest that fit the room, in the style; None if the least ones do not fit."""
    stretches = [_stretch(row, room[0], gap) for row in rows]
    least = _Layout(rows, [[text.least for text in row] for row in rows])
    if min(stretches) < 1 or _total_height(least, gap) > room[1]:
        return None
    most = [
        [min(text.most, text.least * max(1.0, stretch * style.width)) for text in row]
        for row, stretch in zip(rows, stretches, strict=True)
    ]
    weights, limit = _letter_heights(rows, most, style)

    def layout(scale: float) -> _Layout:
        """The layout with letters of `scale` times their weights, as far as their least and greatest sizes allow."""
        lists = zip(rows, weights, most, strict=True)
        return _Layout(
            rows,
            [
                [min(max(scale * w / text.share, text.least), m) for text, w, m in zip(*row, strict=True)]
                for row in lists
            ],
        )

    low, high = 0.0, limit
    for _ in range(30):
        middle = (low + high) / 2
        fits = _total_height(layout(middle), gap, _GAP) <= style.fill * room[1]
        low, high = (middle, high) if fits else (low, middle)
    return layout(low)


def _stretch(row: Sequence[_Text], width: float, gap: float) -> float:
    """By which factor the texts of a row may be larger than the least; below 1 they do not fit."""
    gaps = (len(row) - 1) * max(gap, _SIDE_GAP * max(text.least * text.height for text in row))
    return (width - gaps - 2 * _BORDER * len(row)) / sum(text.width * text.least for text in row)


def _letter_heights(rows: list[list[_Text]], most: list[list[float]], style: _Style) -> tuple[list[list[float]], float]:
    """Letter heights of the texts in relation to each other, and the greatest scale of them, in pixels."""
    heights = [[m * text.share for text, m in zip(*pair, strict=True)] for pair in zip(rows, most, strict=True)]
    lowest, highest = min(map(min, heights)), max(map(max, heights))
    if len(rows) < sum(map(len, rows)) or (style.sizes == "even" and lowest > _SIMILAR * highest):
        return [[1.0] * len(row) for row in rows], lowest
    if style.sizes == "headline" and heights[0][0] > _SIMILAR * highest:
        return [[1.0], *[[style.emphasis]] * (len(rows) - 1)], heights[0][0]
    return [[min(height, _MOST_CONTRAST * lowest) / highest for height in row] for row in heights], highest


def _total_height(layout: _Layout, least_gap: float, gap: float = 0.0) -> float:
    """Height of all rows with their gaps. gap: in heights of the lower one of two rows."""
    heights = [max(row) for row in layout.heights()]
    return sum(heights) + sum(_row_gaps(heights, least_gap, gap))


def _row_gaps(heights: Sequence[float], least_gap: float, gap: float) -> list[float]:
    return [max(least_gap, gap * min(pair)) for pair in zip(heights, heights[1:], strict=False)]


def _places(layout: _Layout, size: tuple[int, int], room: tuple[float, float], style: _Style) -> list[Place]:
    """Puts the rows into the room."""
    widths, heights, least_gap = layout.widths(), layout.heights(), _least_gap(size)
    row_heights = [max(row) for row in heights]
    gaps, spare = _row_gaps(row_heights, least_gap, _GAP), room[1] - sum(row_heights)
    gaps = [gap * min(1.0, spare / sum(gaps)) for gap in gaps]
    between = [
        min(max(least_gap, _SIDE_GAP * height), (room[0] - sum(row)) / max(1, len(row) - 1))
        for row, height in zip(widths, row_heights, strict=True)
    ]
    lengths = [sum(row) + gap * (len(row) - 1) for row, gap in zip(widths, between, strict=True)]
    left = (size[0] - room[0]) / 2 + style.across * (room[0] - max(lengths))
    y = (size[1] - room[1]) / 2 + style.down * (spare - sum(gaps))
    places = []
    for row, length in enumerate(lengths):
        x = left + (0.0 if style.flush else (max(lengths) - length) / 2)
        for width, height in zip(widths[row], heights[row], strict=True):
            top = y + (row_heights[row] - height) / 2
            places.append(Place(_rectangle(x, top, x + width, top + height)))
            x += width + between[row]
        y += row_heights[row] + [*gaps, 0.0][row]
    return places


def _rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners float32 [4, 2] on whole pixels."""
    x0, y0, x1, y1 = round(left), round(top), round(right), round(bottom)
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32)


def _what_would_work(items: Sequence[_Text], size: tuple[int, int]) -> str:
    """The error message of texts that do not fit."""
    width, height = size
    room, gap, style = _room(size, MARGINS[-1]), _least_gap(size), _Style()
    widest = max(items, key=lambda text: text.width * text.least)
    letters = round(widest.least * widest.share)
    if widest.width * widest.least + 2 * _BORDER > room[0]:
        n_fitting = min(int(len(widest.text) * room[0] / (widest.width * widest.least)), len(widest.text) - 1)
        small, font = widest.text.capitalize(), default_page_font(widest.text)
        small_width = font.ink_box(small).width / REFERENCE_SIZE * widest.least + 2 * _BORDER
        way = f'write "{small}"' if small_width <= room[0] else f"shorten it to about {max(1, n_fitting)} characters"
        problem = f'layout: "{widest.text}" in letters of {letters} px is wider than a picture of {width} x {height}'
    else:
        n_fitting = next((n for n in range(len(items), 0, -1) if _best_layout(items[:n], room, gap, style)), 0)
        way = f"write {n_fitting} of them"
        problem = f"layout: {len(items)} texts in letters of {letters} px do not fit in a picture of {width} x {height}"
    for factor in range(2, _LARGEST_SIDE // min(size)):
        larger = (round(width * (1 + factor / 4) / 64) * 64, round(height * (1 + factor / 4) / 64) * 64)
        if max(larger) > _LARGEST_SIDE:
            break
        if _best_layout(items, _room(larger, MARGINS[-1]), _least_gap(larger), style):
            return f"{problem}; {way}, or use a picture of {larger[0]} x {larger[1]}"
    return f"{problem}; {way}"
