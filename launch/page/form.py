"""The fields of the page, and the request of the pipeline that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.inference.request import DrawingRequest, FontChoice, Imitation, parse_color
from launch.page.canvas import read_canvas
from launch.page.faults import Message, PageFault
from launch.page.limits import Uploads
from launch.page.lines import MOST_LINES, texts_of
from launch.page.texts.messages import understand

GENERATE, EDIT = "generate", "edit"
IMITATE = "imitate"
"""The font choice of letters that are imitated from a picture."""

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "seed": 1,
    "count": 1,
    "width": 128,
    "height": 128,
    "strength": 1.0,
    "attnx_scale": 1.0,
    "negative_prompt": "",
    "teacher": True,
    "teacher_steps": 20,
    "guidance": 0.0,
    "revise": True,
    "order": "top-down",
}
"""The fields under `settings` and what they are without a choice. guidance: of the teacher; 0: as distilled.

revise: of places of a new picture that a user has drawn. A hand draws them higher than the letters are, which the tiny
model does not know. The place of an edited picture stays as it is: what stood there is to go.
"""

NAMES = (
    "mode",
    "prompt",
    "canvas_new",
    "canvas_edit",
    "canvas_imitation",
    *(f"font{n}" for n in range(MOST_LINES)),
    *(f"color{n}" for n in range(MOST_LINES)),
    *SETTINGS,
)
"""The fields of a form, in the order in which the page hands them over."""

Form = Mapping[str, Any]
"""Values by the names of NAMES; all of them can be written as JSON."""


@dataclass(frozen=True)
class RequestRules:
    """What a request may ask for. has_student, default_size: of the model. uploads: where pictures are."""

    uploads: Uploads
    has_student: bool
    default_size: int

    def request(self, form: Form) -> DrawingRequest:
        """The request of a form. Raises PageFault, or ValueError in one line, for a form that asks for none."""
        settings, is_edit = self._settings(form), form["mode"] == EDIT
        texts = texts_of(form["prompt"])
        if not texts and not is_edit:
            raise PageFault("prompt", "no_quotes" if '"' not in form["prompt"] else "text_empty", 1)
        size = None if is_edit else (int(form["width"]), int(form["height"]))
        canvas = read_canvas(form["canvas_edit" if is_edit else "canvas_new"])
        if is_edit:
            if not canvas.picture:
                raise PageFault("places", "edit_picture")
            settings["image"] = self.uploads.path(canvas.picture)
            size = self.uploads.size(canvas.picture)
        elif size is not None:
            settings |= {"width": size[0], "height": size[1]}
        if canvas.mask:
            settings |= {"mask": self.uploads.path(canvas.mask), "order": form["order"]}
        canvas = read_canvas(form["canvas_edit" if is_edit else "canvas_new"], size)
        settings["revise"] = bool(form["revise"]) and not is_edit and bool(canvas.places or canvas.mask)
        settings["polygons"] = [polygon.round(2).tolist() for polygon in canvas.places]
        settings["colors"] = self._colors(form, len(texts))
        settings["fonts"] = self._fonts(form, len(texts))
        return DrawingRequest(prompt=form["prompt"], **settings)

    def _settings(self, form: Form) -> dict[str, Any]:
        numbers = {
            "num_images_per_prompt": _whole(form["count"], "count"),
            "seed": _whole(form["seed"], "seed"),
            "teacher_steps": _whole(form["teacher_steps"], "teacher_steps"),
        }
        scale = _number(form["guidance"], "guidance")
        guidance = None if scale == 0 else scale
        if guidance is not None and guidance < 1:
            raise PageFault("settings", "guidance_low")
        own = {
            "num_inference_steps": _whole(form["steps"], "steps"),
            "any_steps": True,
            "teacher": bool(form["teacher"]),
        }
        alone = {"num_inference_steps": numbers["teacher_steps"], "guidance_scale": guidance}
        return {
            **numbers,
            **({**own, "teacher_guidance": guidance} if self.has_student else alone),
            "strength": _number(form["strength"], "strength"),
            "attnx_scale": _number(form["attnx_scale"], "attnx_scale"),
            "negative_prompt": str(form["negative_prompt"] or ""),
            "max_lines": MOST_LINES,
        }

    def _colors(self, form: Form, count: int) -> list[Any]:
        colors = []
        for n in range(min(count, MOST_LINES)):
            color = str(form[f"color{n}"] or "").strip()
            try:
                parse_color(color)
            except ValueError as error:
                raise PageFault("lines", "color_unknown", color) from error
            colors.append(color or None)
        return colors if any(colors) else []

    def _fonts(self, form: Form, count: int) -> list[FontChoice]:
        chosen = [str(form[f"font{n}"] or "") for n in range(min(count, MOST_LINES))]
        if IMITATE not in chosen:
            return [font or None for font in chosen] if any(chosen) else []
        canvas = read_canvas(form["canvas_imitation"])
        if not canvas.picture:
            raise PageFault("imitation", "imitation_picture")
        path, size = self.uploads.path(canvas.picture), self.uploads.size(canvas.picture)
        places = read_canvas(form["canvas_imitation"], size).places
        inside = None if not places else np.clip(places[0], 0, np.array(size) - 1).round(2).tolist()
        return [Imitation(path, inside) if font == IMITATE else font or None for font in chosen]


def default_form(size: int, steps: int) -> dict[str, Any]:
    """The form of a new page."""
    empty = dict.fromkeys(NAMES, "")
    return empty | SETTINGS | {"mode": GENERATE, "width": size, "height": size, "steps": steps}


def fault_messages(error: ValueError) -> list[Message]:
    """The messages of an error of `request` or of the pipeline."""
    return [error.message] if isinstance(error, PageFault) else understand(str(error))


def _whole(value: Any, name: str) -> int:
    number = _number(value, name)
    if number != int(number):
        raise PageFault("settings", "number_whole", name)
    return int(number)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise PageFault("settings", "number_missing", name)
    return float(value)
