"""Pictures of a batch: every tensor that conditions the model, and labelled grids of samples.

Faulty batches are drawn as well, because audit.png must show the fault.

Shape legend: B batch, L lines (padded), C channels, H/W pixels, g the glyph scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from anytext2.core.batch import UNSET_COLOR, Batch
from distill.viz.text import (
    FAINT,
    GAP,
    INK,
    PAPER,
    TEXT_SIZE,
    font,
    line_height,
    stack_vertically,
    text_width,
    wrap_text,
    write_lines,
)

PALETTE = ((255, 92, 92), (78, 205, 120), (90, 150, 255), (255, 200, 60), (220, 110, 255))
"""The colour of each line of text, the same in every panel; repeats after five."""

_EMPTY = (226, 226, 226)


# --- tensors to pictures ---


def tensor_to_image(image: torch.Tensor) -> Image.Image:
    """An image [3, H, W] in [-1, 1] (what lies outside is clamped) as RGB."""
    pixels = ((image.detach().float().cpu().nan_to_num() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def mask_to_image(mask: torch.Tensor) -> Image.Image:
    """A map [H, W] or [1, H, W] in {0, 1} (what lies outside is clamped) as RGB, 1 white."""
    pixels = (mask.detach().float().cpu().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.reshape(mask.shape[-2:]).numpy()).convert("RGB")


def positions_to_image(position: torch.Tensor) -> Image.Image:
    """Position masks [L, H, W], each line filled with its colour of PALETTE; where lines overlap the colours add up."""
    canvas = np.zeros((*position.shape[-2:], 3), np.int64)
    for line, mask in enumerate(position.detach().cpu().numpy()):
        canvas[mask != 0] += np.asarray(PALETTE[line % len(PALETTE)])
    return Image.fromarray(np.minimum(canvas, 255).astype(np.uint8))


# --- grids ---


def image_grid(
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
    heads = [wrap_text(label, width) for label in labels]
    margin = max((text_width(label) for label in row_labels), default=-GAP) + 2 * GAP
    top = max(map(len, heads)) * line_height() + 2 * GAP
    size = (margin + len(labels) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        write_lines(draw, (margin + column * (width + GAP), top - GAP - len(head) * line_height()), head)
    for number, row in enumerate(rows):
        y = top + number * (height + GAP)
        if row_labels:
            write_lines(draw, (GAP, y + height // 2 - line_height() // 2), [row_labels[number]])
        for column, cell in enumerate(row):
            x = margin + column * (width + GAP)
            if cell is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_EMPTY)
            else:
                sheet.paste(_enlarged(cell, factor), (x, y))
    return sheet


def preview_grid(batch: Batch, predictions: Mapping[str, torch.Tensor], max_samples: int = 8) -> Image.Image:
    """One row a sample: original, masked image, position, then each of `predictions` (label -> [B, 3, H, W])."""
    rows: list[list[Image.Image | None]] = []
    for row in range(min(batch.size, max_samples)):
        given = [tensor_to_image(images[row]) for images in (batch.image, batch.masked_image)]
        predicted = [tensor_to_image(images[row]) for images in predictions.values()]
        rows.append([*given, positions_to_image(batch.position[row]), *predicted])
    labels = ["original", "masked", "position", *predictions]
    return image_grid(rows, labels, [str(index) for index in batch.index[: len(rows)]])


# --- audit.png ---


def audit_picture(batch: Batch, max_samples: int = 4, panel: int = 256) -> Image.Image:
    """Every condition in a batch, one block a sample, each line of text in its own colour.

    A block shows the image with its boxes, glyph page, positions, font hint, masked image and inverse mask, each
    `panel` pixels wide; below, every line's glyphs as the recogniser sees them, with text, language and colour; and
    both captions.
    """
    blocks = [_sample_block(batch, row, panel) for row in range(min(batch.size, max_samples))]
    return stack_vertically(blocks)


def _sample_block(batch: Batch, row: int, panel: int) -> Image.Image:
    panels: list[Image.Image | None] = [
        draw_boxes(tensor_to_image(batch.image[row]), batch, row, panel),
        draw_boxes(mask_to_image(batch.glyph[row]), batch, row, panel),
        resize_to_width(positions_to_image(batch.position[row]), panel),
        resize_to_width(mask_to_image(batch.font_hint[row]), panel),
        resize_to_width(tensor_to_image(batch.masked_image[row]), panel),
        resize_to_width(mask_to_image(batch.inverse_mask[row]), panel),
    ]
    mode = "editing" if batch.editing[row] else "generation"
    labels = ["image and boxes", "glyph page", "position", "font hint", f"masked image ({mode})", "inverse mask"]
    top = image_grid([panels], labels, smallest=1)
    captions = [
        *wrap_text(f"image caption: {batch.image_caption[row]}", top.width - 2 * GAP),
        *wrap_text(f"text caption: {batch.text_caption[row]!r}", top.width - 2 * GAP),
    ]
    lines = [_line_strip(batch, row, line, top.width) for line in range(batch.n_lines[row])]
    count = f"{batch.n_lines[row]} line" + ("s" if batch.n_lines[row] != 1 else "")
    title = f"{batch.name[row]}   (sample {batch.index[row]}, {count})"
    text_height = line_height() + GAP
    height = text_height + top.height + sum(s.height for s in lines) + len(captions) * line_height() + 3 * GAP
    block = Image.new("RGB", (top.width, height), PAPER)
    draw = ImageDraw.Draw(block)
    draw.line((0, 0, top.width, 0), fill=FAINT)
    write_lines(draw, (GAP, GAP), [title])
    block.paste(top, (0, text_height))
    y = text_height + top.height
    for strip in lines:
        block.paste(strip, (0, y))
        y += strip.height
    write_lines(draw, (GAP, y + GAP), captions)
    return block


def _line_strip(batch: Batch, row: int, line: int, width: int) -> Image.Image:
    """One line of text: its colour of PALETTE, its glyphs, text, language and colour."""
    glyphs = mask_to_image(batch.glyph_line[row, line]).resize((384, 60), Image.Resampling.BILINEAR)
    strip = Image.new("RGB", (width, glyphs.height + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.rectangle((GAP, 0, 2 * GAP, glyphs.height - 1), fill=PALETTE[line % len(PALETTE)])
    strip.paste(glyphs, (3 * GAP, 0))
    color = batch.color[row, line].tolist()
    text = batch.texts[row][line] if line < len(batch.texts[row]) else "(no text)"
    language = batch.languages[row][line] if line < len(batch.languages[row]) else "?"
    x, y = 4 * GAP + glyphs.width, (glyphs.height - 2 * line_height()) // 2
    write_lines(draw, (x, y), [f"line {line + 1}: {text}", f"{language}, colour {format_color(color)}"])
    if is_color(color):
        after = x + text_width(f"{language}, colour {format_color(color)}") + GAP
        box = (after, y + line_height(), after + 2 * line_height(), y + 2 * line_height() - 3)
        draw.rectangle(box, fill=tuple(round(v) for v in color), outline=FAINT)
    return strip


def draw_boxes(image: Image.Image, batch: Batch, row: int, panel: int, show_colors: bool = False) -> Image.Image:
    """The image, `panel` pixels wide, with every line's polygon and number; a faulty polygon is drawn as it lies.

    show_colors: beside each number a square in the line's colour condition, crossed out where it is not given.
    """
    boxed = resize_to_width(image, panel)
    draw = ImageDraw.Draw(boxed)
    scale = np.array([boxed.width / batch.image.shape[-1], boxed.height / batch.image.shape[-2]])
    width = max(2, panel // 200)
    # A pixel's index is its centre: half a pixel brings it to the middle of the enlarged one.
    outlines = [[(x, y) for x, y in ((np.asarray(points) + 0.5) * scale).tolist()] for points in batch.polygons[row]]
    for line, corners in enumerate(outlines):
        draw.line([*corners, corners[0]], fill=(0, 0, 0), width=2 * width)  # a rim, to be seen on any background
        draw.line([*corners, corners[0]], fill=PALETTE[line % len(PALETTE)], width=width)
    for line, corners in enumerate(outlines):  # after all outlines, so that none of them hides a number
        color = batch.color[row, line].tolist() if show_colors and line < batch.color.shape[1] else None
        _number(draw, boxed.size, corners[0], line, color)
    return boxed


def _number(
    draw: ImageDraw.ImageDraw,
    canvas: tuple[int, int],
    corner: tuple[float, float],
    line: int,
    color: Sequence[float] | None,
) -> None:
    """The line's number on its colour above its first corner, moved into the picture where it would lie outside."""
    size = max(TEXT_SIZE, canvas[0] // 24)
    text, side = str(line + 1), round(0.7 * size)
    plate = math.ceil(font(size).getlength(text)) + 4
    room = plate + (side + 7 if color is not None else 0)
    x = round(min(max(corner[0], 0.0), canvas[0] - room))
    y = round(min(max(corner[1] - 4.0, side + 4.0), canvas[1] - 4.0))
    draw.rectangle((x, y - side - 2, x + plate - 1, y + 2), fill=PALETTE[line % len(PALETTE)])
    draw.text((x + 2, y), text, fill=INK, font=font(size), anchor="ls")
    if color is not None:
        draw_color_square(draw, (x + plate + 3, y - side + 1), side, color)


def draw_color_square(draw: ImageDraw.ImageDraw, at: tuple[int, int], side: int, color: Sequence[float]) -> None:
    """A square of the colour with a rim that shows on any background; crossed out where `is_color` is false."""
    x, y = at
    draw.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), fill=(0, 0, 0))
    draw.rectangle((x - 1, y - 1, x + side, y + side), fill=(255, 255, 255))
    if is_color(color):
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=tuple(round(value) for value in color))
    else:
        draw.line((x, y, x + side - 1, y + side - 1), fill=(200, 0, 0), width=2)


def is_color(color: Sequence[float]) -> bool:
    """Whether these are the values of a colour, rather than UNSET_COLOR or a fault."""
    return all(0 <= value <= 255 for value in color)


def format_color(color: Sequence[float]) -> str:
    """The colour condition as text: "(5, 1, 3)", or "not given"."""
    return "not given" if all(v == UNSET_COLOR for v in color) else "(" + ", ".join(f"{v:g}" for v in color) + ")"


def resize_to_width(image: Image.Image, panel: int) -> Image.Image:
    """The image `panel` pixels wide: enlarged without smoothing, or averaged where it shrinks."""
    enlarging = image.width < panel
    size = (panel, max(1, round(panel * image.height / image.width)))
    return image.resize(size, Image.Resampling.NEAREST if enlarging else Image.Resampling.BOX)


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    rgb = image.convert("RGB")
    if factor == 1:
        return rgb
    return rgb.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
