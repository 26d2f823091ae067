"""Pictures for people: what a batch tells the model, and labelled grids of samples.

Everything here also draws faulty batches: a picture of the fault is what the audit is for.

Shape legend: B batch, L lines (padded), C channels, H/W pixels, g the glyph scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from anytext2.batch import UNSET_COLOR, Batch
from anytext2.fonts import load_font_table

PALETTE = ((255, 92, 92), (78, 205, 120), (90, 150, 255), (255, 200, 60), (220, 110, 255))
"""One colour a line, the same in every panel; it repeats after five."""

_PAPER, _INK, _FAINT, _EMPTY = (250, 250, 250), (25, 25, 25), (130, 130, 130), (226, 226, 226)
_GAP = 8
_TEXT_SIZE = 15


# --- tensors to pictures ---


def picture(image: torch.Tensor) -> Image.Image:
    """An image [3, H, W] in [-1, 1] (what lies outside is clamped) as RGB."""
    pixels = ((image.detach().float().cpu().nan_to_num() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def mask_picture(mask: torch.Tensor) -> Image.Image:
    """A map [H, W] or [1, H, W] in {0, 1} (what lies outside is clamped) as RGB, 1 white."""
    pixels = (mask.detach().float().cpu().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.reshape(mask.shape[-2:]).numpy()).convert("RGB")


def position_picture(position: torch.Tensor) -> Image.Image:
    """Position masks [L, H, W], each line filled with its colour of PALETTE; where lines overlap the colours add up."""
    canvas = np.zeros((*position.shape[-2:], 3), np.int64)
    for line, mask in enumerate(position.detach().cpu().numpy()):
        canvas[mask != 0] += np.asarray(PALETTE[line % len(PALETTE)])
    return Image.fromarray(np.minimum(canvas, 255).astype(np.uint8))


# --- grids ---


def grid(
    rows: Sequence[Sequence[Image.Image | None]],
    labels: Sequence[str],
    row_labels: Sequence[str] = (),
    smallest: int = 192,
) -> Image.Image:
    """Pictures in rows and columns, a label over every column and, if given, beside every row.

    All cells get the size of the largest picture; None leaves one empty. Cells below `smallest` pixels are enlarged by
    a whole factor without smoothing, so that blur in the grid is blur in the picture.
    """
    present = [cell for row in rows for cell in row if cell is not None]
    assert present and all(len(row) == len(labels) for row in rows), "rows and labels must agree, and not be empty"
    assert not row_labels or len(row_labels) == len(rows), "one row label a row"
    factor = max(1, math.ceil(smallest / max(max(cell.size) for cell in present)))
    width, height = (factor * max(cell.size[axis] for cell in present) for axis in (0, 1))
    heads = [_wrapped(label, width) for label in labels]
    margin = max((_text_width(label) for label in row_labels), default=-_GAP) + 2 * _GAP
    top = max(map(len, heads)) * _line_height() + 2 * _GAP
    size = (margin + len(labels) * (width + _GAP), top + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        _write(draw, (margin + column * (width + _GAP), top - _GAP - len(head) * _line_height()), head)
    for number, row in enumerate(rows):
        y = top + number * (height + _GAP)
        if row_labels:
            _write(draw, (_GAP, y + height // 2 - _line_height() // 2), [row_labels[number]])
        for column, cell in enumerate(row):
            x = margin + column * (width + _GAP)
            if cell is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_EMPTY)
            else:
                sheet.paste(_enlarged(cell, factor), (x, y))
    return sheet


def preview_grid(batch: Batch, predictions: Mapping[str, torch.Tensor], max_samples: int = 8) -> Image.Image:
    """One row a sample: original, masked image, position, then each of `predictions` (label -> [B, 3, H, W])."""
    rows: list[list[Image.Image | None]] = []
    for row in range(min(batch.size, max_samples)):
        given = [picture(batch.image[row]), picture(batch.masked_image[row]), position_picture(batch.position[row])]
        rows.append([*given, *(picture(images[row]) for images in predictions.values())])
    return grid(rows, ["original", "masked", "position", *predictions], [str(i) for i in batch.index[: len(rows)]])


# --- the audit's picture ---


def audit_picture(batch: Batch, max_samples: int = 4, panel: int = 256) -> Image.Image:
    """Everything that a batch tells the model, one block a sample, each line of text in its own colour.

    A block shows the image with its boxes, glyph page, positions, font hint, masked image and inverse mask, each
    `panel` pixels wide; below, every line's glyphs as the recogniser sees them, with text, language and colour; and
    both captions.
    """
    blocks = [_sample_block(batch, row, panel) for row in range(min(batch.size, max_samples))]
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), _PAPER)
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height
    return sheet


def _sample_block(batch: Batch, row: int, panel: int) -> Image.Image:
    panels: list[Image.Image | None] = [
        _with_boxes(picture(batch.image[row]), batch, row, panel),
        _with_boxes(mask_picture(batch.glyph[row]), batch, row, panel),
        _sized(position_picture(batch.position[row]), panel),
        _sized(mask_picture(batch.font_hint[row]), panel),
        _sized(picture(batch.masked_image[row]), panel),
        _sized(mask_picture(batch.inverse_mask[row]), panel),
    ]
    mode = "editing" if batch.editing[row] else "generation"
    labels = ["image and boxes", "glyph page", "position", "font hint", f"masked image ({mode})", "inverse mask"]
    top = grid([panels], labels, smallest=1)
    captions = [
        *_wrapped(f"image caption: {batch.image_caption[row]}", top.width - 2 * _GAP),
        *_wrapped(f"text caption: {batch.text_caption[row]!r}", top.width - 2 * _GAP),
    ]
    lines = [_line_strip(batch, row, line, top.width) for line in range(batch.n_lines[row])]
    count = f"{batch.n_lines[row]} line" + ("s" if batch.n_lines[row] != 1 else "")
    title = f"{batch.name[row]}   (sample {batch.index[row]}, {count})"
    text_height = _line_height() + _GAP
    height = text_height + top.height + sum(s.height for s in lines) + len(captions) * _line_height() + 3 * _GAP
    block = Image.new("RGB", (top.width, height), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.line((0, 0, top.width, 0), fill=_FAINT)
    _write(draw, (_GAP, _GAP), [title])
    block.paste(top, (0, text_height))
    y = text_height + top.height
    for strip in lines:
        block.paste(strip, (0, y))
        y += strip.height
    _write(draw, (_GAP, y + _GAP), captions)
    return block


def _line_strip(batch: Batch, row: int, line: int, width: int) -> Image.Image:
    """One line: its colour of the palette, its glyphs, and what is known about it."""
    glyphs = mask_picture(batch.glyph_line[row, line]).resize((384, 60), Image.Resampling.BILINEAR)
    strip = Image.new("RGB", (width, glyphs.height + _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    draw.rectangle((_GAP, 0, 2 * _GAP, glyphs.height - 1), fill=PALETTE[line % len(PALETTE)])
    strip.paste(glyphs, (3 * _GAP, 0))
    color = batch.color[row, line].tolist()
    text = batch.texts[row][line] if line < len(batch.texts[row]) else "(no text)"
    language = batch.languages[row][line] if line < len(batch.languages[row]) else "?"
    shown = "not given" if all(v == UNSET_COLOR for v in color) else "(" + ", ".join(f"{v:g}" for v in color) + ")"
    x, y = 4 * _GAP + glyphs.width, (glyphs.height - 2 * _line_height()) // 2
    _write(draw, (x, y), [f"line {line + 1}: {text}", f"{language}, colour {shown}"])
    if all(0 <= v <= 255 for v in color):
        after = x + _text_width(f"{language}, colour {shown}") + _GAP
        box = (after, y + _line_height(), after + 2 * _line_height(), y + 2 * _line_height() - 3)
        draw.rectangle(box, fill=tuple(round(v) for v in color), outline=_FAINT)
    return strip


def _with_boxes(image: Image.Image, batch: Batch, row: int, panel: int) -> Image.Image:
    sized = _sized(image, panel)
    draw = ImageDraw.Draw(sized)
    scale = np.array([sized.width / batch.image.shape[-1], sized.height / batch.image.shape[-2]])
    for line, polygon in enumerate(batch.polygons[row]):
        # A pixel's index is its centre: half a pixel brings it to the middle of the enlarged one.
        corners = [tuple(point) for point in ((np.asarray(polygon) + 0.5) * scale).tolist()]
        color = PALETTE[line % len(PALETTE)]
        draw.line([*corners, corners[0]], fill=(0, 0, 0), width=4)  # a rim, to be seen on any background
        draw.line([*corners, corners[0]], fill=color, width=2)
        draw.text(
            corners[0], str(line + 1), fill=color, font=_font(), anchor="lb", stroke_width=2, stroke_fill=(0, 0, 0)
        )
    return sized


def _sized(image: Image.Image, panel: int) -> Image.Image:
    enlarging = image.width < panel
    size = (panel, max(1, round(panel * image.height / image.width)))
    return image.resize(size, Image.Resampling.NEAREST if enlarging else Image.Resampling.BOX)


# --- text ---


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return load_font_table().default.at(_TEXT_SIZE)


def _line_height() -> int:
    return round(1.35 * _TEXT_SIZE)


def _text_width(text: str) -> int:
    return math.ceil(_font().getlength(text))


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces, inside a word only where it must be."""
    lines = [""]
    for word in text.replace("\n", " ").split(" "):
        candidate = f"{lines[-1]} {word}" if lines[-1] else word
        if _text_width(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for char in word:
            if lines[-1] and _text_width(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return lines


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * _line_height()), line, fill=_INK, font=_font())


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    rgb = image.convert("RGB")
    if factor == 1:
        return rgb
    return rgb.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
