"""From a request to the model's input: words, places, fonts and colours become a `Sample`, drawn as annotated data is.

Shape legend: H/W pixels of the result, h/w pixels of what the model draws, P corners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from anytext2.core.batch import Batch, Record, Sample, TextLine, collate
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.geometry import Size, is_outside_image
from anytext2.glyphs.fonts import FontTable
from anytext2.glyphs.languages import infer_language
from anytext2.glyphs.rasters import glyph_line_font, glyph_page_fonts, is_drawable
from distill.config.schema import Recipe
from distill.inference.editing import (
    EditWindow,
    choose_window,
    edge_width,
    load_mask,
    load_picture,
    soft_mask,
    window_notice,
)
from distill.inference.fonts import font_hint, font_name, imitated_strokes
from distill.inference.layout import automatic_layout
from distill.inference.letter_size import check_letter_size
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
from distill.inference.prompt import ParsedPrompt, parse_prompt
from distill.inference.request import DrawingRequest, Imitation, parse_color
from distill.inference.result import PlacedLine

_T = TypeVar("_T")

BLANK = " "
"""The text of a place that is to be emptied."""


@dataclass(frozen=True)
class PreparedDrawing:
    """What is drawn for a request. lines: in pixels of the result.

    font_lines: what the font recogniser sees of a line that imitates letters, float32 [1, 48, 320], by line number.
    """

    request: DrawingRequest
    sample: Sample
    lines: tuple[PlacedLine, ...]
    font_lines: dict[int, torch.Tensor]
    warnings: tuple[str, ...]
    editing: Editing | None

    def batch(self, first: int, count: int) -> Batch:
        """The batch of pictures number `first` and following. Only their noise differs."""
        batch = collate([replace(self.sample, index=index) for index in range(first, first + count)])
        if not self.font_lines:
            return batch
        rows, n_lines = batch.font_line.clone(), self.sample.n_lines
        for line, crop in self.font_lines.items():
            rows[line::n_lines] = crop
        return replace(batch, font_line=rows)


@dataclass(frozen=True)
class Editing:
    """The picture that is edited, uint8 [H, W, 3], and how the new text comes into it."""

    picture: np.ndarray
    window: EditWindow
    weight: np.ndarray

    def finish(self, drawn: np.ndarray) -> np.ndarray:
        return self.window.put_back(self.picture, drawn, self.weight)


@dataclass(frozen=True)
class DrawingLimits:
    """What a model can draw. letter: least height of Latin letters in pixels, see `check_letter_size`.

    side: a picture is edited in a window of at most side x side pixels. model: how messages call it.
    """

    letter: float
    side: int
    model: str = "the model"


@dataclass(frozen=True)
class RequestPreparation:
    """Prepares requests for the model of a recipe.

    cells: sides of pictures are multiples of it. limits: what the model can draw. translate: see `parse_prompt`.
    """

    recipe: Recipe
    fonts: FontTable
    cells: int
    limits: DrawingLimits
    translate: Callable[[str], str] | None = None

    def __call__(self, request: DrawingRequest) -> PreparedDrawing:
        """Raises ValueError in one line for a request that cannot be drawn."""
        parsed = parse_prompt(request.prompt, self.translate, self.recipe.data.options.max_chars)
        notes = list(parsed.notes)
        picture = None if request.image is None else load_picture(request.image, "image")
        size = self._size(request) if picture is None else (picture.shape[0], picture.shape[1])
        texts = self._texts(parsed, request)
        places = self._given_places(request, size)
        if picture is not None:
            if not places:
                raise ValueError("image: say where to write in it: a mask, or boxes of the places")
            texts = texts or [BLANK] * len(places)  # nothing to write: the places are emptied
        elif not places and texts:
            places = automatic_layout(texts, (size[1], size[0]), request.seed, self.limits.letter)
        places, more = match_places(places, len(texts))
        notes += more
        if request.revise:
            places = [self._moved(place, text, size) for place, text in zip(places, texts, strict=True)]
        lines = self._lines(request, texts, places, notes)
        areas = [place.position_mask((size[1], size[0])) for place in places]
        editing = None if picture is None else self._editing(picture, lines, areas, notes)
        return self._prepared(request, parsed.caption, lines, areas, size, editing, notes)

    def _size(self, request: DrawingRequest) -> Size:
        usual = self.recipe.data.options.resolution
        size = (request.height or usual, request.width or usual)
        for name, side in zip(("height", "width"), size, strict=True):
            if side % self.cells:
                near = max(self.cells, round(side / self.cells) * self.cells)
                raise ValueError(f"{name}: {side} must be a multiple of {self.cells}, such as {near}")
        return size

    def _texts(self, parsed: ParsedPrompt, request: DrawingRequest) -> list[str]:
        texts = list(parsed.texts)
        if len(texts) > request.max_lines:
            raise ValueError(f"{len(texts)} texts in the prompt: at most {request.max_lines} (max_lines) are written")
        for text in texts:
            if not is_drawable(text, infer_language(text), self.fonts):
                raise ValueError(f"text {text!r}: no font of the font table has any of its characters")
        return texts

    def _given_places(self, request: DrawingRequest, size: Size) -> list[Place]:
        places, width_height = list[Place](), (size[1], size[0])
        if request.mask is not None:
            places += places_from_mask(load_mask(request.mask), width_height, request.order)
        for box in request.boxes:
            places.append(place_from_box(parse_box(box) if isinstance(box, str) else box, width_height))
        for polygon in request.polygons:
            corners = parse_polygon(polygon) if isinstance(polygon, str) else polygon
            places.append(place_from_polygon(corners, width_height))
        places += request.places
        for number, place in enumerate(places, 1):
            if is_outside_image(place.polygon, size):
                raise ValueError(f"place {number} is outside of the picture, {size[1]} x {size[0]} pixels")
        return places

    def _moved(self, place: Place, text: str, size: Size) -> Place:
        font = glyph_page_fonts(text, infer_language(text), self.fonts)[0]
        return moved_to_fit(place, text, (size[1], size[0]), font, self.recipe.data.options.like_reference)

    def _lines(
        self, request: DrawingRequest, texts: Sequence[str], places: Sequence[Place], notes: list[str]
    ) -> tuple[PlacedLine, ...]:
        colors = _one_each(request.colors, len(texts), "colors")
        fonts = _one_each(request.fonts, len(texts), "fonts")
        lines = []
        for text, place, color, font in zip(texts, places, colors, fonts, strict=True):
            language = infer_language(text)
            lines.append(PlacedLine(text, np.float32(place.polygon), language, parse_color(color), font_name(font)))
            if missing := glyph_line_font(text, language, self.fonts).missing_characters(text):
                notes.append(f"{text!r}: the fonts have no {' '.join(missing)}; the rest is written")
        return tuple(lines)

    def _editing(
        self, picture: np.ndarray, lines: Sequence[PlacedLine], areas: Sequence[np.ndarray], notes: list[str]
    ) -> Editing:
        resolution, size = self.recipe.data.options.resolution, (picture.shape[0], picture.shape[1])
        polygons = [line.polygon for line in lines]
        window = choose_window(size, polygons, self.limits.side, self.cells)
        if notice := window_notice(window, size):
            notes.append(notice)
        return Editing(picture, window, soft_mask(np.bitwise_or.reduce(areas), edge_width(window, resolution)))

    def _prepared(
        self,
        request: DrawingRequest,
        caption: str,
        lines: tuple[PlacedLine, ...],
        areas: Sequence[np.ndarray],
        size: Size,
        editing: Editing | None,
        notes: list[str],
    ) -> PreparedDrawing:
        """The sample of the lines. areas: their position masks [H, W]; size: of the result."""
        if editing is None:
            pixels, polygons = np.zeros((*size, 3), np.uint8), [line.polygon for line in lines]
        else:
            pixels = editing.window.cut(editing.picture)
            polygons = [editing.window.to_model(line.polygon) for line in lines]
            areas = [editing.window.cut_mask(area) for area in areas]
        written = [
            (Place(polygon), line.text) for polygon, line in zip(polygons, lines, strict=True) if line.text.strip()
        ]
        written_places, texts = [place for place, _ in written], [text for _, text in written]
        notes += check_letter_size(written_places, texts, self.limits.letter, self.limits.model)
        sample = self._sample(caption, lines, polygons, areas, pixels, editing is not None)
        fonts = _one_each(request.fonts, len(lines), "fonts")
        texts, page = [line.text for line in lines], (pixels.shape[0], pixels.shape[1])
        hint, more = font_hint(texts, polygons, fonts, page, self.recipe.data.options, self.fonts)
        imitated = {n: imitated_strokes(font) for n, font in enumerate(fonts) if isinstance(font, Imitation)}
        return PreparedDrawing(request, replace(sample, font_hint=hint), lines, imitated, (*notes, *more), editing)

    def _sample(
        self,
        caption: str,
        lines: Sequence[PlacedLine],
        polygons: Sequence[np.ndarray],
        areas: Sequence[np.ndarray],
        pixels: np.ndarray,
        editing: bool,
    ) -> Sample:
        """A sample as of annotated data, without what training does at random."""
        options = replace(
            self.recipe.data.options,
            max_lines=max(1, len(lines)),
            mask_img_prob=float(editing),
            font_hint_prob=0.0,
            color_prob=1.0,
            rand_font=False,
        )
        written = tuple(
            TextLine(line.text, polygon, line.language, line.color)
            for line, polygon in zip(lines, polygons, strict=True)
        )
        record = Record(Path("prompt"), "prompt", caption, written)
        dataset = AnyWordDataset([record], options, self.recipe.seed, self.fonts)
        return dataset.sample_of(record, pixels, np.stack(areas) if areas else None)


def _one_each(given: Sequence[_T], count: int, what: str) -> list[_T | None]:
    """One entry for each line: as given, or the only one for all. Raises ValueError for another number."""
    if len(given) in (0, 1):
        return [given[0] if given else None] * count
    if len(given) != count:
        raise ValueError(f"{what}: {len(given)} for {count} texts; give one for each, or one for all")
    return list(given)
