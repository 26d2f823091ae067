"""sheet.png: the pictures of every way of sampling, each with the expected text of its lines and what OCR read."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from PIL import Image, ImageDraw

from distill.evaluation.ocr import exact_match, normalise
from distill.viz.grids import SampleImages
from distill.viz.text import (
    FAINT,
    GAP,
    INK,
    PAPER,
    font,
    line_height,
    stack_vertically,
    text_width,
    truncate_text,
    write_lines,
)

GREEN, RED = (22, 138, 62), (205, 35, 35)
_BAR = (228, 232, 238)
_MARK = 14
_COLUMNS = 6


def reading_sheet(samples: Sequence[SampleImages], rows: Sequence[tuple[str, str]], panel: int = 320) -> Image.Image:
    """One block a sample: the original, if there is one, and the picture of each of `rows` (key, label), `panel` wide.

    Below a picture stand, for each line, the expected text with a green tick or a red cross, and what the OCR engine
    read, with wrong characters in red. Without an OCR engine there are pictures only.
    """
    assert samples, "a sheet needs pictures"
    first = [("originals", "original")] if any(sample.original is not None for sample in samples) else []
    columns = min(_COLUMNS, len(first) + len(rows))
    width = GAP + columns * (panel + GAP)
    blocks = [
        _block(sample, [*(first if sample.original is not None else []), *rows], columns, panel, width)
        for sample in samples
    ]
    return stack_vertically(blocks)


def _block(sample: SampleImages, rows: Sequence[tuple[str, str]], columns: int, panel: int, width: int) -> Image.Image:
    tiles = [_tile(sample, key, label, panel) for key, label in rows]
    bar = line_height() + GAP
    heights = [max(tile.height for tile in tiles[first : first + columns]) for first in range(0, len(tiles), columns)]
    block = Image.new("RGB", (width, bar + GAP + sum(heights) + GAP * len(heights)), PAPER)
    draw = ImageDraw.Draw(block)
    draw.rectangle((0, 0, width, bar - 1), fill=_BAR)
    write_lines(
        draw, (GAP, GAP // 2 - 1), truncate_text(f"{sample.name}   {sample.caption.strip(' .')}", width - 2 * GAP)
    )
    y = bar + GAP
    for number, height in enumerate(heights):
        for column, tile in enumerate(tiles[number * columns : (number + 1) * columns]):
            block.paste(tile, (GAP + column * (panel + GAP), y))
        y += height + GAP
    return block


def _tile(sample: SampleImages, key: str, label: str, panel: int) -> Image.Image:
    array = sample.original if key == "originals" else sample.sampled[key]
    assert array is not None
    picture = _resize(array, panel)
    recognized = sample.recognized.get(key)
    lines = [] if recognized is None else list(zip(sample.texts, recognized, strict=True))
    top, each = line_height() + 2, 2 * line_height() + 6
    tile = Image.new("RGB", (panel, top + picture.height + GAP // 2 + each * len(lines)), PAPER)
    draw = ImageDraw.Draw(tile)
    right = sum(exact_match(found, truth) for truth, found in lines)
    score = f"{right} of {len(lines)}" if lines else ""
    write_lines(draw, (0, 0), truncate_text(label, panel - text_width(score) - GAP))
    draw.text((panel, 0), score, fill=GREEN if right == len(lines) else RED, font=font(), anchor="ra")
    tile.paste(picture, (0, top))
    y = top + picture.height + GAP // 2
    for truth, found in lines:
        _write_line(draw, (0, y), truth, found, panel)
        y += each
    return tile


def _resize(array: np.ndarray, panel: int) -> Image.Image:
    """The picture `panel` pixels wide. Interpolated smoothly, so that letters can be read."""
    picture = Image.fromarray(array)
    size = (panel, max(1, round(panel * picture.height / picture.width)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _write_line(draw: ImageDraw.ImageDraw, at: tuple[int, int], truth: str, found: str, width: int) -> None:
    (x, y), right = at, exact_match(found, truth)
    _mark(draw, (x + 1, y + 4), right)
    start = x + _MARK + 8
    write_lines(draw, (start, y), truncate_text(truth, width - start))
    below = y + line_height()
    if not found:
        draw.text((start, below), "(nothing read)", fill=RED, font=font())
        return
    draw.text((start, below), "read ", fill=FAINT, font=font())
    pen = start + text_width("read ")
    for part, good in matching_parts(found, truth):
        for character in part:
            if pen + text_width(character + "…") > width and pen < width:
                draw.text((pen, below), "…", fill=FAINT, font=font())
                return
            draw.text((pen, below), character, fill=INK if good else RED, font=font())
            pen += text_width(character)


def matching_parts(found: str, truth: str) -> list[tuple[str, bool]]:
    """The normalised text that was read, split into parts that match `truth` (True) and parts that do not."""
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
