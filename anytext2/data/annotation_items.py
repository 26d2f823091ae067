"""Parses and validates one item of an AnyWord annotation file.

Only this module knows the names of an item's fields; anytext2/data/annotations.py reads the whole file.

Shape legend: P corners.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from anytext2.core.batch import UNSET_COLOR, TextLine
from anytext2.data.geometry import same_boxes, uncrossed
from anytext2.data.image_lookup import parts_below
from anytext2.data.text import DECODING_MARK, is_dont_care, normalize_caption, normalize_text, unsupported_features
from anytext2.glyphs.languages import infer_language

PLACEHOLDER = "*"
"""Marks the place of a line's embedding in the text caption. It is removed from image captions."""

MAX_COORDINATE = 1e6
"""Greatest absolute coordinate of a corner in pixels. Greater ones would overflow integers in the drawing code."""

MAX_SHARE = 1.5
"""A polygon without a greater coordinate would have two pixels at most: its coordinates are shares of the picture."""


class SkippedError(Exception):
    """An item or annotation that is not used.

    reason: a short text without details, by which skipped ones are counted; `limits.LIMITS` says which are faults.
    path: of the field in the item, '' for the item itself; problem: what was found there. polygon: float32 [P, 2], the
    region of a skipped line; None if it is unknown.
    """

    def __init__(self, reason: str, path: str = "", problem: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path
        self.problem = problem or reason
        self.polygon: np.ndarray | None = None


class InvalidFieldError(SkippedError):
    """A field that is missing or malformed."""

    def __init__(self, field: str, problem: str, reason: str = "") -> None:
        super().__init__(reason or (f"faulty {field}" if field else "not an object"), field, problem)


@dataclass(frozen=True)
class Note:
    """What a report says of a line that is used: how it was changed, or what of it may not be drawn as written."""

    about: str


@dataclass(frozen=True)
class AnnotationItem:
    """The fields of an item. annotations: the raw JSON, None where the item has no such field."""

    name: str
    caption: str
    annotations: list[Any] | None

    def lines(self) -> Iterator[tuple[TextLine | SkippedError, list[Note]]]:
        """Yields each annotation as a line with its notes, or the error for which it is skipped."""
        for number, annotation in enumerate(self.annotations or []):
            try:
                yield _line(annotation)
            except SkippedError as error:
                place = f"annotations[{number}]"
                error.path = f"{place}.{error.path}" if error.path else place
                yield error, []


def parse_item(item: Any, wm_threshold: float, cap_watermark: bool) -> AnnotationItem:
    """Parses an item, except for its annotations.

    wm_threshold, cap_watermark: see `anytext2.data.annotations.load_records`.
    Raises SkippedError if its watermark score is above the threshold, InvalidFieldError for a malformed field.
    """
    score = _number(item, "wm_score")
    if score is not None and score > wm_threshold:
        raise SkippedError("watermark score above the threshold")
    caption = normalize_caption(_text("caption", optional_field(item, "caption", str) or ""))
    if cap_watermark and score is not None:
        caption += " with watermarks " if score > 0.5 else " no watermarks "
    annotations = optional_field(item, "annotations", list)
    return AnnotationItem(_picture_name(item), caption.replace(PLACEHOLDER, " "), annotations)


def without_repeats(parsed: Iterable[TextLine | SkippedError]) -> list[TextLine | SkippedError]:
    """The annotations of a picture in their order, with an error in place of each line whose box occurs twice.

    Label tools write copies. If the texts are the same, the first line is kept. If they differ, it is not known which
    one is right: none is kept, and the region is ignored by the loss.
    """
    annotations = list(parsed)
    lines = {number: line for number, line in enumerate(annotations) if isinstance(line, TextLine)}
    for group in same_boxes({number: line.polygon for number, line in lines.items()}):
        texts = list(dict.fromkeys(lines[number].text for number in group))
        for number in group[1:] if len(texts) == 1 else group:
            annotations[number] = _repeated(number, group, texts, lines[number].polygon)
    return annotations


def _repeated(number: int, group: list[int], texts: list[str], polygon: np.ndarray) -> SkippedError:
    others = ", ".join(f"annotations[{other}]" for other in group[:3] if other != number)
    if len(texts) == 1:
        return SkippedError("same box twice", f"annotations[{number}]", f"the box of {others}, with the same text")
    error = SkippedError(
        "same box with different texts", f"annotations[{number}]", f"the box of {others}, texts {texts[:3]}"
    )
    error.polygon = polygon
    return error


def required_field(item: Any, field: str, kind: type) -> Any:
    """The value of a field. Raises InvalidFieldError if it is missing, null or not an instance of `kind`."""
    value = optional_field(item, field, kind)
    if value is None:
        raise InvalidFieldError(field, f"missing; a {_JSON_TYPES[kind]} is needed")
    return value


def optional_field(item: Any, field: str, kind: type | tuple[type, ...]) -> Any:
    """The value of a field, None if it is missing or null. Raises InvalidFieldError if it is of another type."""
    if not isinstance(item, dict):
        raise InvalidFieldError("", f"expected an object, got a {_JSON_TYPES.get(type(item), type(item).__name__)}")
    value = item.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        wanted = _JSON_TYPES[kind[0] if isinstance(kind, tuple) else kind]
        raise InvalidFieldError(field, f"expected a {wanted}, got {_short(value)}")
    return value


def is_valid_unicode(text: str) -> bool:
    """Whether the text has no unpaired surrogates, which JSON can express but UTF-8 cannot encode."""
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
    climbs = ".." in name and os.path.normpath(name).split(os.sep)[0] == ".."
    if os.path.isabs(name) or climbs or ("\\" in name and parts_below(name) is None):
        raise InvalidFieldError("img_name", f"{_short(name)} is not below data_root", "name outside data_root")
    return name


def _line(annotation: Any) -> tuple[TextLine, list[Note]]:
    """The line and what is to be noted of it."""
    given = _polygon(annotation)
    polygon = uncrossed(given)
    try:
        if annotation.get("valid") is False:
            raise SkippedError("marked invalid")
        text, notes = _line_text(annotation)
        if polygon is not given:
            notes.append(Note("polygon with crossing edges (its convex hull is used)"))
        language = _text("language", optional_field(annotation, "language", str) or "")
        if not language:
            notes.append(Note("language missing (inferred from the script)"))
        return TextLine(text, polygon, language or infer_language(text), _color(annotation)), notes
    except SkippedError as error:
        error.polygon = polygon
        raise


def _line_text(annotation: Any) -> tuple[str, list[Note]]:
    """The normalised text and what is to be noted of it. Raises SkippedError where there is nothing to teach."""
    given = required_field(annotation, "text", str)
    if not is_valid_unicode(given):
        raise SkippedError("text with unpaired surrogates")
    normalized = normalize_text(given)
    if not normalized.text:
        raise SkippedError("empty text")
    if is_dont_care(normalized.text):
        raise SkippedError("text that marks a line as unreadable, such as ###")
    if DECODING_MARK in normalized.text:
        raise SkippedError("text with U+FFFD, left by a wrong encoding")
    if normalized.rows > 1:
        raise SkippedError("text of several rows")
    return normalized.text, [Note(about) for about in (*normalized.changes, *unsupported_features(normalized.text))]


def _polygon(annotation: Any) -> np.ndarray:
    """Corners float32 [P, 2], P >= 3."""
    corners = required_field(annotation, "polygon", list)
    if not corners:
        raise SkippedError("empty polygon")
    try:
        exact = np.array(corners)
    except (TypeError, ValueError):  # lists of different lengths
        exact = np.empty(0)
    if exact.ndim != 2 or exact.shape[1] != 2 or len(exact) < 3 or exact.dtype.kind not in "iuf":
        raise InvalidFieldError("polygon", f"expected at least three [x, y] pairs, got {_short(corners)}{_hint(exact)}")
    exact = exact.astype(np.float64)
    largest = np.abs(exact).max()
    if not largest <= MAX_COORDINATE:  # also true for NaN
        raise InvalidFieldError("polygon", f"expected pixels up to {MAX_COORDINATE:.0f}, got {_short(corners)}")
    polygon = exact.astype(np.float32)
    if largest <= MAX_SHARE and np.ptp(exact, axis=0).min() > 0:
        raise SkippedError("coordinates like shares", "polygon", _short(corners))
    # A self-intersecting polygon can have no net area; its minimum-area rectangle has one.
    if cv2.contourArea(polygon) < 1 and math.prod(cv2.minAreaRect(polygon)[1]) < 1:
        raise SkippedError("polygon with an area below one pixel", "polygon", _short(corners))
    return polygon


def _hint(values: np.ndarray) -> str:
    """What malformed corners look like, where label tools write them so."""
    if values.dtype.kind not in "iuf":
        return ""
    if values.shape == (4,):
        return "; if it is [x, y, width, height] or [left, top, right, bottom], write its four corners"
    if values.shape == (2, 2):
        return "; if these are opposite corners of a box, write all four"
    return "; write the flat list as pairs" if values.ndim == 1 and len(values) >= 6 and len(values) % 2 == 0 else ""


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
    """The value's repr in at most 60 characters; its cost does not grow with the value."""
    text = _REPR.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_JSON_TYPES: dict[type, str] = {str: "string", list: "list", dict: "object", int: "number", float: "number"}
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxlong = 3, 6, 4, 60, 60
