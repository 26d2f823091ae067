"""Fonts that a request chooses: by name, by file, or by letters to imitate.

Shape legend: h/w pixels of what the model draws, P corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anytext2.core.line_crop import font_crop, quad_from_mask
from anytext2.data.geometry import Size
from anytext2.data.options import DatasetConfig
from anytext2.glyphs import reference_render, render
from anytext2.glyphs.fonts import Font, FontTable
from distill.inference.editing import load_picture
from distill.inference.places import place_from_box, place_from_polygon
from distill.inference.request import FontChoice, Imitation


def font_hint(
    texts: Sequence[str],
    polygons: Sequence[np.ndarray],
    choices: Sequence[FontChoice],
    size: Size,
    options: DatasetConfig,
    table: FontTable,
) -> tuple[torch.Tensor, list[str]]:
    """The texts in the fonts that were chosen by name, as AnyText2 hints at them, and notes.

    polygons: of the texts, in pixels of a page of `size` (h, w). Returns uint8 [1, h, w] in {0, 1}.
    """
    page, notes = np.zeros(size, np.uint8), []
    for given, polygon, choice in zip(texts, polygons, choices, strict=True):
        if choice is None or isinstance(choice, Imitation):
            continue
        font = find_font(choice, table)
        if missing := font.missing_characters(given):
            notes.append(f"{given!r}: {font.path.name} has no {' '.join(missing)}; these keep the model's font")
        text = font.supported(given)
        if options.like_reference:
            reference_render.glyph_page_bitmap(text, polygon, size, font, None).paste_onto(page)
        else:
            render.glyph_page_bitmap(text, polygon, font, options.ink_threshold).paste_onto(page)
    return torch.from_numpy(page)[None], notes


def find_font(choice: str | Path, table: FontTable) -> Font:
    """A font of the table by its file's name, with or without the suffix, or a font file.

    Raises ValueError for one that is not there.
    """
    fonts = {font.path.name: font for font in (table.default, *(f for some in table.languages.values() for f in some))}
    wanted = str(choice).lower()
    for name, font in fonts.items():
        if wanted in (name.lower(), Path(name).stem.lower()):
            return font
    if not Path(choice).is_file():
        raise ValueError(f"font {choice}: neither a file nor one of {', '.join(Path(name).stem for name in fonts)}")
    font = Font(Path(choice))
    try:
        font.ink_box("a")
    except OSError as error:
        raise ValueError(f"font {choice}: is no font file ({error})") from error
    return font


def imitated_strokes(imitation: Imitation) -> torch.Tensor:
    """What the font recogniser sees of the letters to imitate: float32 [1, 48, 320]."""
    picture = load_picture(imitation.image, "font")
    size, region = (picture.shape[0], picture.shape[1]), imitation.region
    if region is None:
        region = (0, 0, size[1] - 1, size[0] - 1)
    polygon = _region_polygon(region, (size[1], size[0]), font_name(imitation))
    strokes = render.font_hint_bitmap(render.stroke_bitmap(picture, polygon), polygon)
    page = np.zeros(size, np.uint8)
    strokes.paste_onto(page)
    quad = quad_from_mask(render.fill_polygons([polygon], size))
    return font_crop(torch.from_numpy(page)[None].float(), quad)


def _region_polygon(region: Sequence[Any], size: tuple[int, int], name: str) -> np.ndarray:
    """The corners of a region in a picture of size (width, height). Raises ValueError."""
    is_box = np.ndim(region) == 1 and len(region) == 4
    try:
        return (place_from_box(region, size) if is_box else place_from_polygon(region, size)).polygon
    except ValueError as error:
        raise ValueError(f"font {name}: {error}") from error


def font_name(choice: FontChoice) -> str:
    if isinstance(choice, Imitation):
        known = isinstance(choice.image, str | Path)
        return f"as in {choice.image if known else 'a picture'}"
    return str(choice or "")
