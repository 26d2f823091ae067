"""What the canvas of the page says: JSON to places in pixels. Nothing in it is trusted, it comes from a browser.

The canvas sends `{"places": [{"x", "y", "w", "h", "angle"}], "picture": name, "mask": name}`: centre and sides of each
box in pixels of the picture, its rotation in degrees, and the names of pictures that the page has stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launch.page.faults import PageFault

LEAST_SIDE = 2.0
"""Pixels; a smaller box cannot hold a letter."""

_OUTSIDE = 1.0  # pixels that a box may stand over the edge, by the canvas's rounding; it is cut there


@dataclass(frozen=True)
class Canvas:
    """places: polygons float32 [4, 2], x and y in pixels. picture, mask: names of stored pictures, '' for none.

    upload: what was just sent: its kind, `picture` or `mask`, and the path where the server has put it. fault: what was
    wrong with the last upload, [key of the texts, arguments].
    """

    places: tuple[np.ndarray, ...] = ()
    picture: str = ""
    mask: str = ""
    upload: Mapping[str, Any] = field(default_factory=dict)
    fault: Sequence[Any] = ()


def read_canvas(value: Any, size: tuple[int, int] | None = None) -> Canvas:
    """The canvas of its JSON. size: (width, height) of the picture; None: places are not compared with it.

    Raises PageFault for a place that is outside of the picture or has no area, and for what no canvas sends.
    """
    try:
        content = json.loads(value or "{}")
        boxes = [] if content.get("mask") else list(content.get("places") or ())
        names = [content.get(name) or "" for name in ("picture", "mask")]
        upload, fault = content.get("upload") or {}, content.get("fault") or []
        polygons = [box_corners(box) for box in boxes]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PageFault("places", "canvas_broken") from error
    if not all(isinstance(name, str) for name in names) or not isinstance(upload, dict) or not isinstance(fault, list):
        raise PageFault("places", "canvas_broken")
    placed = tuple(_inside(polygon, n, size) for n, polygon in enumerate(polygons, 1))
    return Canvas(placed, names[0], names[1], upload, fault)


def box_corners(box: Mapping[str, float]) -> np.ndarray:
    """The corners float64 [4, 2] of a box: from its top left one clockwise, turned around its centre.

    Raises KeyError, TypeError or ValueError for one that is none.
    """
    x, y, w, h, angle = (float(box[name]) for name in ("x", "y", "w", "h", "angle"))
    if not all(map(math.isfinite, (x, y, w, h, angle))):
        raise ValueError("not a finite number")
    across = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))]) * w / 2
    down = np.array([-math.sin(math.radians(angle)), math.cos(math.radians(angle))]) * h / 2
    return np.array([x, y]) + np.stack([-across - down, across - down, across + down, down - across])


def write_canvas(
    boxes: Sequence[Sequence[float]] = (), picture: str = "", mask: str = "", fault: Sequence[Any] = ()
) -> str:
    """The canvas's JSON with upright boxes: left, top, right, bottom."""
    places = [
        {"x": (left + right) / 2, "y": (top + bottom) / 2, "w": right - left, "h": bottom - top, "angle": 0}
        for left, top, right, bottom in boxes
    ]
    return json.dumps({"places": places, "picture": picture, "mask": mask, "fault": list(fault)})


def after_upload(value: str, kept: Mapping[str, str], fault: Sequence[Any] = ()) -> str:
    """The canvas's JSON after an upload. kept: the name of the new `picture`, which empties it, or `mask`."""
    content = json.loads(value or "{}")
    content.pop("upload", None)
    if "picture" in kept:
        content |= {"places": [], "mask": ""}
    return json.dumps({**content, **kept, "fault": list(fault)})


def _inside(polygon: np.ndarray, number: int, size: tuple[int, int] | None) -> np.ndarray:
    """The polygon, cut at the edge where it stands over by rounding only."""
    sides = np.linalg.norm(polygon - np.roll(polygon, 1, axis=0), axis=1)
    if sides.min() < LEAST_SIDE:
        raise PageFault("places", "place_small", number)
    if size is not None:
        width_height = np.array(size, np.float64)
        beyond = np.maximum(-polygon, polygon - width_height).max()
        if beyond > _OUTSIDE:
            raise PageFault("places", "place_outside", number)
        polygon = polygon.clip(0, width_height)
    return polygon.astype(np.float32)
