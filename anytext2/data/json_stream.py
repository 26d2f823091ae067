"""A JSON object of any size, field by field: lists item by item, so that never more than one item is held.

The standard library decodes the items (in C); this module only finds where one ends. It accepts what `json.loads`
accepts: NaN and Infinity are numbers, and of a name that an item repeats the last value counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

CHUNK_CHARACTERS = 1 << 18
"""Characters that are read at a time."""

MAX_VALUE_CHARACTERS = 1 << 24
"""Characters of one item (or of one field that is no list) that are read before giving up."""

Member = tuple[str, int | None, Any]


class JsonError(ValueError):
    """The text is not JSON, or not of a form that can be read in parts; one line that says where."""


class NotAnObjectError(JsonError):
    """The text may be JSON, but its top level is no object."""


def iter_members(file: TextIO) -> Iterator[Member]:
    """The fields of the JSON object in `file`, in the file's order, as (name, number, value).

    A field with a list comes as (name, None, []) and then once per item as (name, 0, item), (name, 1, item), ...;
    every other field as (name, None, value). A whole number of thousands of digits is a float. Raises JsonError,
    UnicodeDecodeError and OSError where they are met, so possibly after the first fields.
    """
    text = _ReadBuffer(file)
    if (first := text.peek()) != "{":
        raise NotAnObjectError(f"got {first!r}") if first and first in '["-0123456789tfnNI' else text.fault("no value")
    for _ in text.separated("}"):
        if text.peek() != '"':
            raise text.fault("expected a field name in double quotes")
        name = text.value()
        if text.peek() != ":":
            raise text.fault("expected ':'")
        text.skip()
        if text.peek() == "[":
            yield name, None, []
            for number in text.separated("]"):
                yield name, number, text.value()
        else:
            yield name, None, text.value()
    if text.peek():
        raise text.fault("more text after the end of the object")


class _ReadBuffer:
    """The part of a text that is being looked at; it moves forward only."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._characters_before = 0
        self._lines_before = 0

    def peek(self) -> str:
        """The next character that is no white space, without passing it; '' at the end."""
        while True:
            self._at = _end_of_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_on()

    def skip(self) -> None:
        """Passes the character that `peek` has just shown."""
        self._at += 1

    def separated(self, closing: str) -> Iterator[int]:
        """Passes the opening bracket, then yields 0, 1, ... where an element begins, which the caller must pass,
        and passes the commas and the closing bracket."""
        self.skip()
        if self.peek() == closing:
            self.skip()
            return
        number = 0
        while True:
            yield number
            number += 1
            found = self.peek()
            if found not in (",", closing):
                raise self.fault(f"expected ',' or '{closing}'")
            self.skip()
            if found == closing:
                return

    def value(self) -> Any:
        """Passes one whole value and returns it."""
        self.peek()
        while True:
            try:
                value, end = _decoded(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not _may_be_cut_off(error, len(self._text)):
                    raise self.fault(error.msg, error.pos) from None
            except RecursionError:
                raise self.fault("lists or objects are nested too deeply") from None
            else:
                # A number may go on behind the window: of 2e+5 the decoder takes the 2 where only 2e+ is there.
                if end + len("e+") < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE_CHARACTERS:
                raise self.fault(f"a value of more than {MAX_VALUE_CHARACTERS} characters")
            self._read_on()

    def fault(self, problem: str, at: int | None = None) -> JsonError:
        at = self._at if at is None else at
        line = self._lines_before + self._text.count("\n", 0, at) + 1
        end = "" if at < len(self._text) else ", the end of the file"
        return JsonError(f"not JSON (line {line}, character {self._characters_before + at}{end}: {problem})")

    def _read_on(self) -> None:
        """Forgets what was passed. Reads as much as is left at least, so that a long value is not tried too often."""
        self._characters_before += self._at
        self._lines_before += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        added = self._file.read(max(CHUNK_CHARACTERS, len(rest)))
        self._text, self._at, self._ended = rest + added, 0, not added


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses to convert whole numbers of thousands of digits
        return _PATIENT_DECODER.raw_decode(text, at)


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "the pattern matches nothing, too"
    return found.end()


def _may_be_cut_off(error: json.JSONDecodeError, length: int) -> bool:
    """Whether the text behind the window may make the value a whole one."""
    return error.pos >= length - _LONGEST_WORD or error.msg.startswith("Unterminated string")


_DECODER = json.JSONDecoder()
_PATIENT_DECODER = json.JSONDecoder(parse_int=float)
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_WORD = 16  # characters: -Infinity or two \uXXXX escapes, of which the decoder needs all
