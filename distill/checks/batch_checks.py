"""Sanity checks of a batch: does it hold what the model was trained to be given?

The loss does not show faulty conditions: it also falls with a white glyph page, ink of 1/255 or a lost placeholder. So
every rule that a batch must obey is checked on a real one.

Shape legend: B batch, L lines (padded), C channels, H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch

from anytext2.core.batch import UNSET_COLOR, Batch
from anytext2.glyphs.reference_render import is_column
from anytext2.model.text_encoder import CONTEXT_LENGTH, count_placeholders

_RANGE_SLACK = 1e-3  # rounding of x / 127.5 - 1 in half precision
_BOX_SLACK = 0.01  # of the page's longer side: antialiasing and hinting may leave the box by a pixel or two
_INK_OUTSIDE = 0.02  # share of the ink that may lie beyond even that
_LEGIBLE = 20.0  # pixels: higher letters have strokes of a pixel and more, which every ink_threshold keeps
_LINE_INK = 0.6  # a line of bold capitals covers less than half of its canvas; an inverted one nearly all


@dataclass(frozen=True)
class Finding:
    """A broken rule. check: which rule; where: sample and line, or tensor; message: what was found."""

    check: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.where}: {self.message}"


def check_batch(batch: Batch, like_reference: bool = False) -> list[Finding]:
    """All findings in a batch, empty if it is sound: `check_samples`, and that there is any text."""
    findings = check_samples(batch, like_reference)
    return findings if has_text(batch) else [*findings, no_text(", ".join(batch.name[:3]))]


def has_text(batch: Batch) -> bool:
    """Whether a sample of the batch has a line of text. A single picture may have none: it gets a blank line."""
    return any(text.strip() for texts in batch.texts for text in texts)


def no_text(where: str) -> Finding:
    return Finding("texts", where, "no sample has a line of text; see launch/check_dataset.py")


def check_samples(batch: Batch, like_reference: bool = False) -> list[Finding]:
    """The findings in each sample of a batch by itself. Copies the batch to the CPU, so it is called once a run.

    like_reference: the glyph page is drawn as AnyText2 draws it, where text from top to bottom leaves its box.
    """
    batch = batch.to("cpu")
    glyph_page = partial(_glyph_page, like_reference=like_reference)
    findings: list[Finding] = []
    for row in range(batch.size):
        for check in (_pictures, _masks, glyph_page, _glyph_lines, _positions, _colors, _captions):
            findings.extend(check(batch, row))
    return findings


def _pictures(batch: Batch, row: int) -> Iterator[Finding]:
    for name, picture in (("image", batch.image[row]), ("masked_image", batch.masked_image[row])):
        low, high = float(picture.amin()), float(picture.amax())
        if not torch.isfinite(picture).all():
            yield Finding("image range", batch.name[row], f"{name} holds values that are not finite")
        elif low < -1 - _RANGE_SLACK or high > 1 + _RANGE_SLACK:
            yield Finding("image range", batch.name[row], f"{name} spans {low:g} to {high:g}, expected within -1 to 1")
    blank = bool((batch.masked_image[row] == -1).all())
    if not batch.editing[row] and not blank:
        yield Finding("masked image", batch.name[row], "not constant -1 although nothing is edited")
    if batch.editing[row]:
        outside = batch.position[row].amax(dim=0, keepdim=True) == 0
        if bool(((batch.masked_image[row] != batch.image[row]) & outside).any()):
            yield Finding("masked image", batch.name[row], "differs from the image outside the text positions")


def _masks(batch: Batch, row: int) -> Iterator[Finding]:
    masks = {"glyph": batch.glyph, "position": batch.position, "font_hint": batch.font_hint}
    for name, mask in (masks | {"inverse_mask": batch.inverse_mask}).items():
        if not _is_binary(mask[row]):
            yield Finding("mask range", batch.name[row], f"{name} is not in {{0, 1}}: {_span(mask[row])}")


def _glyph_page(batch: Batch, row: int, like_reference: bool) -> Iterator[Finding]:
    ink = (batch.glyph[row, 0] != 0).numpy()  # the WriteNet takes "not zero" as ink
    boxes = _boxes(batch, row, ink.shape)
    inked, boxed = int(ink.sum()), int(boxes.sum())
    if inked > boxed:
        message = f"ink covers {inked / ink.size:.1%} of the glyph page, the text boxes {boxed / ink.size:.1%}"
        yield Finding("glyph page", batch.name[row], message)
    outside = int((ink & ~boxes).sum())
    leaves_box = like_reference and any(is_column(np.asarray(polygon, np.float32)) for polygon in batch.polygons[row])
    if outside > _INK_OUTSIDE * inked and not leaves_box:
        yield Finding("glyph page", batch.name[row], f"{outside / inked:.1%} of the ink lies outside the text boxes")
    if not inked and any(text.strip() for text in batch.texts[row]):
        message = f"no ink, although the texts are {', '.join(batch.texts[row])}; {_why_no_ink(batch, row)}"
        yield Finding("glyph page", batch.name[row], message)


def _why_no_ink(batch: Batch, row: int) -> str:
    """How high the letters are, and what would draw them."""
    heights = [min(cv2.minAreaRect(np.asarray(p, np.float32))[1]) for p in batch.polygons[row]]
    side = batch.image.shape[-1]
    if not heights or max(heights) >= _LEGIBLE:
        return "launch/check_dataset.py lists the characters that no font in fonts/ has"
    return (
        f"letters are {max(heights):.0f} px high at {side} px; raise data.options.resolution or lower "
        "data.options.ink_threshold"
    )


def _boxes(batch: Batch, row: int, shape: tuple[int, ...]) -> np.ndarray:
    """Where ink may be, bool [H*g, W*g]: each polygon and its minimum-area rectangle, dilated by _BOX_SLACK."""
    scale = shape[0] / batch.image.shape[-2]
    mask = np.zeros(shape, np.uint8)
    for polygon in batch.polygons[row]:
        corners = np.asarray(polygon, np.float32) * scale
        frame = cv2.boxPoints(cv2.minAreaRect(corners))
        for shape_points in (corners, frame):
            cv2.fillPoly(mask, [np.round(shape_points).astype(np.int32)], 1)
    reach = max(2, round(_BOX_SLACK * max(shape)))
    grown: np.ndarray = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    return grown > 0


def _glyph_lines(batch: Batch, row: int) -> Iterator[Finding]:
    for line in range(batch.glyph_line.shape[1]):
        glyphs, where = batch.glyph_line[row, line], f"{batch.name[row]}, line {line + 1}"
        if line >= batch.n_lines[row]:
            if bool(glyphs.any()):
                yield Finding("glyph line", where, f"has ink, but the sample has {batch.n_lines[row]} lines")
            continue
        text = batch.texts[row][line] if line < len(batch.texts[row]) else ""
        share = float((glyphs != 0).float().mean())
        if not _is_binary(glyphs):
            yield Finding("glyph line", where, f"not in {{0, 1}}: {_span(glyphs)}")
        elif share == 0 and text.strip():
            yield Finding(
                "glyph line", where, f"empty, although the text is {text!r}; no font in fonts/ has these characters"
            )
        elif share > _LINE_INK:
            yield Finding("glyph line", where, f"{share:.0%} ink; black text on white instead of white on black?")


def _positions(batch: Batch, row: int) -> Iterator[Finding]:
    for line in range(batch.position.shape[1]):
        position, where = (batch.position[row, line] != 0).numpy(), f"{batch.name[row]}, line {line + 1}"
        area = int(position.sum())
        if line >= batch.n_lines[row]:
            if area:
                yield Finding("position", where, f"not empty, but the sample has {batch.n_lines[row]} lines")
        elif area and line < len(batch.polygons[row]):
            box = np.zeros(position.shape, np.uint8)
            cv2.fillPoly(box, [np.round(batch.polygons[row][line]).astype(np.int32)], 1)
            grown = cv2.dilate(box, np.ones((7, 7), np.uint8)) > 0  # training moves the edge by two pixels at most
            inside = int((position & grown).sum())
            if inside < area / 2:
                message = f"only {inside / area:.0%} of it lies in the line's own polygon; list its corners in order"
                yield Finding("position", where, message)


def _colors(batch: Batch, row: int) -> Iterator[Finding]:
    for line, color in enumerate(batch.color[row].tolist()):
        where = f"{batch.name[row]}, line {line + 1}"
        if all(value == UNSET_COLOR for value in color):
            continue
        if any(not 0 <= value <= 255 for value in color):
            message = f"{color} is neither within 0 to 255 nor {UNSET_COLOR} in every channel (not given)"
            yield Finding("color", where, message)
        elif any(value != round(value) for value in color):
            yield Finding("color", where, f"{color} is not a colour of 0 to 255; divided by 255, or a default of 0.5?")


def _captions(batch: Batch, row: int) -> Iterator[Finding]:
    name, wanted = batch.name[row], batch.n_lines[row]
    listed = (len(batch.texts[row]), len(batch.languages[row]), len(batch.polygons[row]))
    if not 1 <= wanted <= batch.position.shape[1] or any(count != wanted for count in listed):
        message = f"n_lines is {wanted}, but there are {listed[0]} texts, {listed[1]} languages, {listed[2]} polygons"
        yield Finding("lines", name, message)
    found = count_placeholders([batch.text_caption[row]])[0]
    if found != wanted:
        fewer = "fewer" if found < wanted else "more"
        message = (
            f"text caption {batch.text_caption[row]!r} has {fewer} placeholders after tokenisation ({found}) than "
            f"lines ({wanted}); write ' * , * . ' with spaces, within {CONTEXT_LENGTH - 2} tokens; a smaller "
            "data.options.max_lines makes it shorter"
        )
        yield Finding("placeholders", name, message)
    if "*" in batch.image_caption[row]:
        yield Finding("placeholders", name, f"image caption {batch.image_caption[row]!r} holds a '*'")


def _is_binary(mask: torch.Tensor) -> bool:
    return bool(((mask == 0) | (mask == 1)).all())


def _span(mask: torch.Tensor) -> str:
    return f"values from {float(mask.amin()):g} to {float(mask.amax()):g}"
