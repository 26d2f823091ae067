"""One item of an AnyWord annotation file -> what a record is made of, or why it cannot be used.

The names of an item's fields are known here only; see anytext2/data/annotations.py for the whole file.

Shape legend: P corners.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from anytext2.core.batch import UNSET_COLOR, TextLine

PLACEHOLDER = "*"
"""Stands for a line of text in the text caption, and must therefore stand nowhere else."""

MAX_COORDINATE = 1e6
"""Pixels. No picture is as large; what is farther out is a fault, and would overflow integers when it is drawn."""


class SkippedError(Exception):
    """Something legal that is of no use. `reason` is the same for all that are left out for it, so that it can be
    counted; `polygon`: the place of a line whose text cannot be learned, None where it is not known either."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.polygon: np.ndarray | None = None


class InvalidFieldError(SkippedError):
    """A field that is not as it must be. path: where in the item, '' for the item itself; problem: what is wrong."""

    def __init__(self, field: str, problem: str, reason: str = "") -> None:
        super().__init__(reason or (f"faulty {field}" if field else "not an object"))
        self.path = field
        self.problem = problem


@dataclass(frozen=True)
class AnnotationItem:
    """What an item says; annotations are still as they were read."""

    name: str
    caption: str
    annotations: list[Any]

    def lines(self) -> Iterator[TextLine | SkippedError]:
        """Every annotation as a line, or why it is none."""
        for number, annotation in enumerate(self.annotations):
            try:
                yield _line(annotation)
            except InvalidFieldError as fault:
                place = f"annotations[{number}]"
                fault.path = f"{place}.{fault.path}" if fault.path else place
                yield fault
            except SkippedError as reason:
                yield reason


def parse_item(item: Any, wm_threshold: float, cap_watermark: bool) -> AnnotationItem:
    """The item's own fields. Raises LeftOutError where its picture is not to be used, FaultError where it cannot be."""
    score = _number(item, "wm_score")
    if score is not None and score > wm_threshold:
        raise SkippedError("watermark score above the threshold")
    caption = _text("caption", optional_field(item, "caption", str) or "")
    if cap_watermark and score is not None:
        caption += " with watermarks " if score > 0.5 else " no watermarks "
    annotations = optional_field(item, "annotations", list) or []
    return AnnotationItem(_picture_name(item), caption.replace(PLACEHOLDER, " "), annotations)


def required_field(item: Any, field: str, kind: type) -> Any:
    """The value of a field. Raises FaultError where it is missing, null or not of that kind."""
    value = optional_field(item, field, kind)
    if value is None:
        raise InvalidFieldError(field, f"missing; a {_NAMES[kind]} is needed")
    return value


def optional_field(item: Any, field: str, kind: type | tuple[type, ...]) -> Any:
    """The value of a field, None where it is missing or null. Raises FaultError where it is not of that kind."""
    if not isinstance(item, dict):
        raise InvalidFieldError("", f"expected an object, got a {_NAMES.get(type(item), type(item).__name__)}")
    value = item.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        wanted = _NAMES[kind[0] if isinstance(kind, tuple) else kind]
        raise InvalidFieldError(field, f"expected a {wanted}, got {_short(value)}")
    return value


def is_valid_unicode(text: str) -> bool:
    """Whether the text is Unicode: JSON can also write halves of surrogate pairs, which no font and no file has."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _picture_name(item: Any) -> str:
    name = _text("img_name", required_field(item, "img_name", str))
    if not name or "\0" in name:
        raise InvalidFieldError("img_name", f"expected the name of a file, got {_short(name)}")
    if os.path.isabs(name) or (".." in name and os.path.normpath(name).split(os.sep)[0] == ".."):
        raise InvalidFieldError("img_name", f"{_short(name)} is not below data_root", "name outside data_root")
    return name


def _line(annotation: Any) -> TextLine:
    polygon = _polygon(annotation)
    try:
        if annotation.get("valid") is False:
            raise SkippedError("marked invalid")
        text = required_field(annotation, "text", str)
        if not text.strip():
            raise SkippedError("empty text")
        if not is_valid_unicode(text):
            raise SkippedError("text with unpaired surrogates")
        language = _text("language", required_field(annotation, "language", str))
        return TextLine(text, polygon, language, _color(annotation))
    except SkippedError as reason:
        reason.polygon = polygon
        raise


def _polygon(annotation: Any) -> np.ndarray:
    """Corners float32 [P, 2]."""
    corners = required_field(annotation, "polygon", list)
    if not corners:
        raise SkippedError("empty polygon")
    try:
        exact = np.array(corners)
    except (TypeError, ValueError):  # lists of different lengths
        exact = np.empty(0)
    if exact.ndim != 2 or exact.shape[1] != 2 or len(exact) < 3 or exact.dtype.kind not in "iuf":
        raise InvalidFieldError("polygon", f"expected at least three [x, y] pairs, got {_short(corners)}")
    exact = exact.astype(np.float64)
    if not np.abs(exact).max() <= MAX_COORDINATE:  # NaN is not, either
        raise InvalidFieldError("polygon", f"expected pixels up to {MAX_COORDINATE:.0f}, got {_short(corners)}")
    polygon = exact.astype(np.float32)
    # Parts of a polygon with its corners in the wrong order cancel each other out; a rectangle around it has no parts.
    if cv2.contourArea(polygon) < 1 and math.prod(cv2.minAreaRect(polygon)[1]) < 1:
        raise SkippedError("polygon with an area below one pixel")
    return polygon


def _color(annotation: dict[str, Any]) -> tuple[int, int, int] | None:
    value = optional_field(annotation, "color", list)
    if value is None or value == [UNSET_COLOR] * 3:
        return None
    if len(value) != 3 or not all(_is_number(c) and 0 <= c <= 255 for c in value):
        raise InvalidFieldError("color", f"expected [red, green, blue] in 0..255, got {_short(value)}")
    red, green, blue = (round(c) for c in value)
    return red, green, blue


def _number(item: Any, field: str) -> float | None:
    value = optional_field(item, field, (int, float))
    if value is not None and not abs(value) < math.inf:
        raise InvalidFieldError(field, f"expected a number, got {value}")
    return value


def _text(field: str, value: str) -> str:
    if not is_valid_unicode(value):
        raise InvalidFieldError(field, f"expected Unicode text, got unpaired surrogates in {_short(value)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """At most 60 printable characters, at a cost that does not grow with the value."""
    text = _BRIEF.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NAMES: dict[type, str] = {str: "string", list: "list", dict: "object", int: "number", float: "number"}
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict, _BRIEF.maxstring, _BRIEF.maxlong = 3, 6, 4, 60, 60
