"""What a picture is asked for with: `DrawingRequest`, from keyword arguments or from a JSON object.

Pictures may be files. Coordinates are x, y in pixels; those of an edited picture are as it is seen, turned upright.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from distill.inference.places import ORDERS, Order, Place

ImageSource = str | Path | Image.Image | np.ndarray
"""A file, a PIL picture, or pixels uint8 [H, W, 3] or [H, W]."""

RGB = tuple[int, int, int]
MOST_IMAGES = 64


@dataclass(frozen=True)
class Imitation:
    """The strokes of letters in a region of a picture, which a line's font is to resemble.

    region: left, top, right, bottom, or the corners [x, y] of a polygon; None: the whole picture.
    """

    image: ImageSource
    region: Sequence[Any] | None = None


FontChoice = str | Path | Imitation | None
"""A name in the font table, a font file, letters to imitate, or None to leave the choice to the model."""


@dataclass(frozen=True, kw_only=True)
class DrawingRequest:
    """One prompt with all settings. The defaults are what a model was trained for.

    prompt: the words to write stand in quotes. negative_prompt: what guidance leads away from.
    image: the picture to edit; without it, one of height x width (default: as in training) is drawn.
    mask, boxes, polygons, places: where the lines are, in this order. mask: shapes on a background, one place each, in
    `order`. boxes: [left, top, right, bottom] or '40,60,400,140'. Without any, places are chosen with the seed.
    fonts, colors: one entry for each line, or one for all. Colours are names, '#RRGGBB' or (red, green, blue).
    revise: move places so that their texts fit.
    num_inference_steps: of the student; None: as trained. any_steps: also numbers that the student is not for.
    guidance_scale: None: of a student 1 (none), of the teacher as distilled.
    strength: of the control by text and places. attnx_scale: of the text attention.
    teacher: draw with the undistilled model, too, in teacher_steps with teacher_guidance.
    """

    prompt: str
    negative_prompt: str = ""
    image: ImageSource | None = None
    mask: ImageSource | None = None
    boxes: Sequence[Any] = ()
    polygons: Sequence[Any] = ()
    places: Sequence[Place] = ()
    order: Order = "top-down"
    revise: bool = False
    fonts: Sequence[FontChoice] = ()
    colors: Sequence[Any] = ()
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    any_steps: bool = False
    sampler: str = ""
    guidance_scale: float | None = None
    gamma: float = 0.3
    strength: float = 1.0
    attnx_scale: float = 1.0
    seed: int = 0
    num_images_per_prompt: int = 1
    max_lines: int = 5
    teacher: bool = False
    teacher_steps: int = 20
    teacher_guidance: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt: expected a text, got {self.prompt!r}")
        for name in self.__dataclass_fields__:
            kind = _annotation(name)
            if not isinstance(getattr(self, name), _PYTHON_KINDS.get(kind, object)):
                is_list = kind.startswith("Sequence")
                expected = "a list with one entry for each line" if is_list else _KIND_NAMES[kind]
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        for name, least, most in _RANGES:
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            is_left_out = value is None and self.__dataclass_fields__[name].default is None
            if not is_left_out and not (is_whole and least <= value <= most):
                raise ValueError(f"{name}: {value!r} must be a whole number from {least} to {most}")
        if self.image is not None and (self.height or self.width):
            raise ValueError("height, width: an edited picture keeps its size; leave them out")
        if self.order not in ORDERS:
            raise ValueError(f"order: {self.order!r}: one of {', '.join(ORDERS)}")
        for color in self.colors:
            parse_color(color)
        for font in self.fonts:
            if font is not None and not isinstance(font, str | Path | Imitation):
                raise ValueError(f"fonts: {font!r} is no name of a font, font file or imitation")
        for place in self.places:
            if not isinstance(place, Place):
                raise ValueError(f"places: {place!r} is no Place")

    def to_json(self) -> dict[str, Any]:
        """The settings that differ from the defaults, as `from_json` reads them. Pictures in memory have no name."""
        plain = {field.name: (_plain(getattr(self, field.name)), _plain(field.default)) for field in fields(self)}
        return {name: value for name, (value, default) in plain.items() if name == "prompt" or value != default}


_RANGES = (
    ("num_inference_steps", 1, 999),
    ("teacher_steps", 1, 999),
    ("num_images_per_prompt", 1, MOST_IMAGES),
    ("height", 64, 4096),
    ("width", 64, 4096),
    ("max_lines", 1, 30),
    ("seed", 0, 2**63 - 1),
)

PER_PROMPT = ("negative_prompt", "seed", "image", "mask")
"""Settings that may be lists beside a list of prompts, with an entry for each."""


def requests_of(prompt: str | list[str] | tuple[str, ...], settings: Mapping[str, Any]) -> list[DrawingRequest]:
    """The requests of a prompt or of a list of prompts, in order.

    settings: fields of `DrawingRequest`, the same for all prompts. Those in PER_PROMPT may be lists with one entry for
    each prompt. Seeds may also have one entry for each picture, those of a prompt together, as diffusers' generators;
    each picture is then a request of its own.
    Raises ValueError, with the prompt's number where there are several.
    """
    lists = {name: settings[name] for name in PER_PROMPT if isinstance(settings.get(name), list | tuple)}
    if not isinstance(prompt, list | tuple):
        if lists:
            raise ValueError(f"{next(iter(lists))}: a list goes with a list of prompts, as in [prompt]")
        return [DrawingRequest(prompt=prompt, **settings)]
    if not prompt:
        raise ValueError("prompt: an empty list")
    prompts, shared = list(prompt), dict(settings)
    count = settings.get("num_images_per_prompt", 1)
    if count != 1 and isinstance(count, int) and len(lists.get("seed", ())) == len(prompts) * count:
        shared["num_images_per_prompt"] = 1
        others = {name: [entry for entry in entries for _ in range(count)] for name, entries in lists.items()}
        prompts, lists = [one for one in prompts for _ in range(count)], {**others, "seed": lists["seed"]}
    for name, entries in lists.items():
        if len(entries) != len(prompts):
            raise ValueError(f"{name}: {len(entries)} for {len(prompts)} prompts; give one for each, or one for all")
    requests = []
    for number, one in enumerate(prompts):
        own = {name: entries[number] for name, entries in lists.items()}
        try:
            requests.append(DrawingRequest(prompt=one, **{**shared, **own}))
        except ValueError as error:
            raise ValueError(f"prompt {number + 1}: {error}") from error
    return requests


_JSON_NAMES: dict[str, str] = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "count": "num_images_per_prompt",
}
_PYTHON_ONLY = ("places",)


def request_from_json(item: Any, where: str, defaults: Mapping[str, Any], folder: Path) -> DrawingRequest:
    """The request of a JSON object with the fields of `DrawingRequest`, or of a string, the prompt.

    where: for errors. defaults: values of fields that the object does not have. folder: of relative paths.
    Raises ValueError for a field that does not exist or has a wrong value.
    """
    item = {"prompt": item} if isinstance(item, str) else item
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object with a prompt, got {json.dumps(item)[:60]}")
    values: dict[str, Any] = {_JSON_NAMES.get(str(name), str(name)): value for name, value in item.items()}
    known = [field.name for field in fields(DrawingRequest) if field.name not in _PYTHON_ONLY]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *_JSON_NAMES], 1)
            raise ValueError(f"{where}: {name}: no such field" + (f"; {near[0]} is one" if near else ""))
        if not isinstance(values[name], _KINDS.get(_annotation(name), object)):
            raise ValueError(f"{where}: {name}: {values[name]!r} is not {_KIND_NAMES[_annotation(name)]}")
    if "prompt" not in values:
        raise ValueError(f"{where}: prompt: missing; the words to write stand in quotes in it")
    for name in ("image", "mask"):
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    try:
        values["fonts"] = [_font_from_json(font, folder) for font in values.get("fonts", defaults.get("fonts", ()))]
        return DrawingRequest(**{**defaults, **values})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def parse_color(value: Any) -> RGB | None:
    """Red, green, blue in 0..255 of a name, '#RRGGBB' or three numbers; None or '' is no colour.

    Raises ValueError.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            red, green, blue = ImageColor.getrgb(value)[:3]
        except ValueError as error:
            raise ValueError(f"colour {value!r}: write a name as in red, or #RRGGBB as in #ff0000") from error
        return red, green, blue
    numbers = list(value) if isinstance(value, Sequence) else []
    if len(numbers) != 3 or not all(isinstance(n, int) and 0 <= n <= 255 for n in numbers):
        raise ValueError(f"colour {value!r}: write a name as in red, #RRGGBB, or three numbers from 0 to 255")
    return numbers[0], numbers[1], numbers[2]


def parse_font(text: str) -> FontChoice:
    """The font of a command line: a name or a file, `FILE@40,60,400,140` or `FILE@` for letters to imitate."""
    file, at, region = text.rpartition("@")
    if not at:
        return text or None
    try:
        return Imitation(file, [float(number) for number in region.split(",")] if region else None)
    except ValueError as error:
        raise ValueError(f"font {text!r}: write the region as FILE@left,top,right,bottom") from error


def _font_from_json(font: Any, folder: Path) -> FontChoice:
    if isinstance(font, dict):
        if not isinstance(font.get("image"), str) or font.keys() - {"image", "region"}:
            raise ValueError(f"fonts: {font!r}: an imitation has an image and, if it is a part of it, a region")
        return Imitation(folder / font["image"], font.get("region"))
    found: FontChoice = parse_font(font) if isinstance(font, str) else font
    if isinstance(found, Imitation) and isinstance(found.image, str):
        return Imitation(folder / found.image, found.region)
    return found


def _annotation(name: str) -> str:
    return str(DrawingRequest.__dataclass_fields__[name].type)


_KINDS: dict[str, Any] = {
    "bool": bool,
    "str": str,
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "ImageSource | None": (str, type(None)),
    "Sequence[Any]": list,
    "Sequence[FontChoice]": list,
}
_PYTHON_KINDS: dict[str, Any] = {
    "bool": bool,
    "str": str,
    "float": Real,
    "float | None": (Real, type(None)),
    "Sequence[Any]": (list, tuple, np.ndarray),
    "Sequence[FontChoice]": (list, tuple),
    "Sequence[Place]": (list, tuple),
}
_KIND_NAMES = {
    "bool": "true or false",
    "str": "a text",
    "float": "a number",
    "float | None": "a number",
    "ImageSource | None": "the path of a picture",
    "Sequence[Any]": "a list",
    "Sequence[FontChoice]": "a list",
}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Imitation):
        return {name: _plain(part) for name, part in asdict(value).items() if part is not None}
    if isinstance(value, np.ndarray) and value.dtype != np.uint8:  # corners
        return value.tolist()
    if isinstance(value, Image.Image | np.ndarray):
        return "(a picture in memory)"
    if isinstance(value, Place):
        return np.asarray(value.polygon).round(1).tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
