"""The recorded batch of the reference, asked for as a prompt in the places of its lines."""

from __future__ import annotations

import numpy as np

from anytext2.glyphs.fonts import load_font_table
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.places import Place
from distill.inference.preparation import DrawingLimits, PreparedDrawing, RequestPreparation
from distill.inference.request import DrawingRequest
from tests.helpers.models.official_golden import read_golden

PROMPT = 'a shop sign on the wall no watermarks, that reads "你好", "OPEN".'
POLYGONS = ([(32, 36), (140, 36), (140, 96), (32, 96)], [(240, 204), (104, 214), (100, 160), (236, 150)])
"""The polygons of the two lines, read off the recorded positions."""


def reference_preparation(resolution: int) -> RequestPreparation:
    """Prompts for the official model, drawn as the reference draws."""
    changes = ["data.options.like_reference=true", f"data.options.resolution={resolution}"]
    recipe = load_recipe(DEFAULT_RECIPE, [*changes, "model.config=sd15", "model.weights=filled"])
    return RequestPreparation(recipe, load_font_table(), 64, DrawingLimits(20, 1024))


def recorded_prompt() -> PreparedDrawing:
    """The prompt with picture, positions and colours of `b_batch`. Only the font hint is not asked for."""
    golden = read_golden("b_batch")
    areas = [golden[f"positions_{n}_u8"][0, ..., 0] // 255 for n in (0, 1)]
    places = [Place(np.float32(polygon), area) for polygon, area in zip(POLYGONS, areas, strict=True)]
    colors = [tuple(golden[f"color_{n}"][0].tolist()) for n in (0, 1)]
    request = DrawingRequest(prompt=PROMPT, image=golden["img_u8"][0], places=places, colors=colors)
    return reference_preparation(256)(request)
