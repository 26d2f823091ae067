"""The examples of the page: forms that differ from a new one in a few fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anytext2.core.resources import resource
from launch.page.canvas import write_canvas
from launch.page.form import EDIT, GENERATE
from launch.page.limits import Uploads

PHOTOGRAPH = resource("launch/page/assets/sign.jpg")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Example:
    """boxes: left, top, right, bottom as shares of the picture's sides. fields: of the form, beside the prompt."""

    name: str
    mode: str
    prompt: str
    boxes: tuple[Box, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


EXAMPLES = (
    Example("sign", GENERATE, 'a wooden board that reads "OPEN"', fields={"seed": 1}),
    Example("chinese", GENERATE, 'a red wall with the words "你好"', fields={"seed": 2, "color0": "yellow"}),
    Example(
        "two",
        GENERATE,
        'a wooden board that reads "CAFE" "茶"',
        ((0.06, 0.08, 0.94, 0.5), (0.3, 0.55, 0.7, 0.94)),
        {"seed": 3},
    ),
    Example("photo", EDIT, 'a blue sign "SHOP"', ((60 / 320, 80 / 240, 260 / 320, 150 / 240),), {"color0": "white"}),
)


def example_form(example: Example, default: Mapping[str, Any], uploads: Uploads) -> dict[str, Any]:
    """The form of an example, laid over a new one."""
    form = {**default, "mode": example.mode, "prompt": example.prompt, **example.fields}
    if example.mode == EDIT:
        name = uploads.add(PHOTOGRAPH)
        width, height = uploads.size(name)
    else:
        name, width, height = "", int(form["width"]), int(form["height"])
    boxes = [(left * width, top * height, right * width, bottom * height) for left, top, right, bottom in example.boxes]
    form["canvas_edit" if example.mode == EDIT else "canvas_new"] = write_canvas(boxes, name)
    return form
