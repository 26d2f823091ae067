"""What every way of sampling wrote, to be checked by eye: pictures large, and under each what was read in its lines."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from PIL import Image, ImageDraw

from distill.evaluation.ocr import exact_match, normalise
from distill.viz.grids import GridRow
from distill.viz.text import FAINT, GAP, INK, PAPER, cut, font, line_height, stacked, text_width, write

GREEN, RED = (22, 138, 62), (205, 35, 35)
_BAR = (228, 232, 238)
_MARK = 14
_COLUMNS = 6


def verdict_sheet(shown: Sequence[GridRow], rows: Sequence[tuple[str, str]], panel: int = 320) -> Image.Image:
    """One block a sample: the original and what each of `rows` (key, label) drew, `panel` pixels wide.

    Under a picture stands, for each line, what should be read, with a green tick or a red cross, and what was read, its
    wrong characters in red; nothing where no OCR engine was at hand.
    """
    assert shown, "a sheet needs pictures"
    columns = min(_COLUMNS, 1 + len(rows))
    width = GAP + columns * (panel + GAP)
    blocks = [_block(one, [("originals", "original"), *rows], columns, panel, width) for one in shown]
    return stacked(blocks)


def _block(one: GridRow, rows: Sequence[tuple[str, str]], columns: int, panel: int, width: int) -> Image.Image:
    tiles = [_tile(one, key, label, panel) for key, label in rows]
    bar = line_height() + GAP
    heights = [max(tile.height for tile in tiles[first : first + columns]) for first in range(0, len(tiles), columns)]
    block = Image.new("RGB", (width, bar + GAP + sum(heights) + GAP * len(heights)), PAPER)
    draw = ImageDraw.Draw(block)
    draw.rectangle((0, 0, width, bar - 1), fill=_BAR)
    write(draw, (GAP, GAP // 2 - 1), cut(f"{one.name}   {one.caption.strip(' .')}", width - 2 * GAP))
    y = bar + GAP
    for number, height in enumerate(heights):
        for column, tile in enumerate(tiles[number * columns : (number + 1) * columns]):
            block.paste(tile, (GAP + column * (panel + GAP), y))
        y += height + GAP
    return block


def _tile(one: GridRow, key: str, label: str, panel: int) -> Image.Image:
    array = one.original if key == "originals" else one.rows[key]
    picture = _panel(array, panel)
    read = one.read.get(key)
    verdicts = [] if read is None else list(zip(one.texts, read, strict=True))
    top, each = line_height() + 2, 2 * line_height() + 6
    tile = Image.new("RGB", (panel, top + picture.height + GAP // 2 + each * len(verdicts)), PAPER)
    draw = ImageDraw.Draw(tile)
    right = sum(exact_match(found, truth) for truth, found in verdicts)
    score = f"{right} of {len(verdicts)}" if verdicts else ""
    write(draw, (0, 0), cut(label, panel - text_width(score) - GAP))
    draw.text((panel, 0), score, fill=GREEN if right == len(verdicts) else RED, font=font(), anchor="ra")
    tile.paste(picture, (0, top))
    y = top + picture.height + GAP // 2
    for truth, found in verdicts:
        _verdict(draw, (0, y), truth, found, panel)
        y += each
    return tile


def _panel(array: np.ndarray, panel: int) -> Image.Image:
    """The picture `panel` pixels wide. Enlarged smoothly: it is to be read as letters, not as pixels."""
    picture = Image.fromarray(array)
    size = (panel, max(1, round(panel * picture.height / picture.width)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _verdict(draw: ImageDraw.ImageDraw, at: tuple[int, int], truth: str, found: str, width: int) -> None:
    (x, y), right = at, exact_match(found, truth)
    _mark(draw, (x + 1, y + 4), right)
    start = x + _MARK + 8
    write(draw, (start, y), cut(truth, width - start))
    below = y + line_height()
    if not found:
        draw.text((start, below), "(nothing read)", fill=RED, font=font())
        return
    draw.text((start, below), "read ", fill=FAINT, font=font())
    pen = start + text_width("read ")
    for part, good in marked_parts(found, truth):
        for character in part:
            if pen + text_width(character + "…") > width and pen < width:
                draw.text((pen, below), "…", fill=FAINT, font=font())
                return
            draw.text((pen, below), character, fill=INK if good else RED, font=font())
            pen += text_width(character)


def marked_parts(found: str, truth: str) -> list[tuple[str, bool]]:
    """What was read, in pieces that are in their place (True) or not. Compared as `normalise` compares texts."""
    read, wanted = normalise(found), normalise(truth)
    parts: list[tuple[str, bool]] = []
    for kind, first, last, _, _ in SequenceMatcher(None, read, wanted, autojunk=False).get_opcodes():
        if last > first:
            parts.append((read[first:last], kind == "equal"))
    return parts


def _mark(draw: ImageDraw.ImageDraw, at: tuple[int, int], right: bool) -> None:
    """A tick or a cross, drawn as lines: not every font has them."""
    x, y = at
    if right:
        points = [(x, y + _MARK // 2), (x + _MARK // 3, y + _MARK - 3), (x + _MARK, y + 1)]
        draw.line(points, fill=GREEN, width=3, joint="curve")
    else:
        draw.line((x + 1, y + 1, x + _MARK - 2, y + _MARK - 2), fill=RED, width=3)
        draw.line((x + 1, y + _MARK - 2, x + _MARK - 2, y + 1), fill=RED, width=3)
