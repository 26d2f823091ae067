"""Text in pictures: one font, line breaks, truncation; and the colours of paper and ink."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from anytext2.glyphs.fonts import load_font_table

PAPER, INK, FAINT = (250, 250, 250), (25, 25, 25), (130, 130, 130)
GAP = 8
TEXT_SIZE = 15


@lru_cache(maxsize=16)
def font(size: int = TEXT_SIZE) -> ImageFont.FreeTypeFont:
    """The font of all labels, which has Latin and Chinese characters."""
    return load_font_table().default.face(size)


def line_height() -> int:
    return round(1.35 * TEXT_SIZE)


def text_width(text: str) -> int:
    return math.ceil(font().getlength(text))


def wrap_text(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces; a word that is wider is broken inside."""
    lines = [""]
    for word in text.replace("\n", " ").split(" "):
        candidate = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if lines[-1] and text_width(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return lines


def truncate_text(text: str, width: int, max_lines: int = 1) -> list[str]:
    """The text in at most `max_lines` lines of `width` pixels, with an ellipsis where it was truncated."""
    lines = wrap_text(text, width)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and text_width(last + "…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last + "…"]


def write_lines(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str]) -> None:
    """Draws lines of text, one below the other; at: upper left corner of the first."""
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * line_height()), line, fill=INK, font=font())


def stack_vertically(blocks: Sequence[Image.Image]) -> Image.Image:
    """One picture of `blocks`, one below the other, as wide as the widest."""
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), PAPER)
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height
    return sheet
