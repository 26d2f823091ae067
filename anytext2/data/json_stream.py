"""Reads a JSON object of any size member by member, and its lists item by item, with one item in memory at a time.

The standard library's C decoder decodes the items; this module finds where an item ends. It accepts what `json.loads`
accepts: NaN and Infinity are numbers, and if an item repeats a name, the last value counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

CHUNK_CHARACTERS = 1 << 18
"""Characters that are read from the file at a time."""

MAX_VALUE_CHARACTERS = 1 << 24
"""Longest item, or member that is not a list, in characters."""

Member = tuple[str, int | None, Any]
"""Name, number of the list item (None for the member itself), value."""


class JsonError(ValueError):
    """The text is not JSON, or has a value that is too long; one line with line and character number."""


class NotAnObjectError(JsonError):
    """The top level of the text is not an object."""


def iter_members(file: TextIO) -> Iterator[Member]:
    """Yields the members of the JSON object in `file`, in the file's order, as (name, number, value).

    A list is yielded as (name, None, []), followed by its items (name, 0, item), (name, 1, item), ... Any other member
    is yielded as (name, None, value). An integer of thousands of digits becomes a float.
    Raises JsonError, UnicodeDecodeError and OSError, possibly after the first members.
    """
    text = _ReadBuffer(file)
    if (first := text.peek()) != "{":
        raise NotAnObjectError(f"got {first!r}") if first and first in '["-0123456789tfnNI' else text.fault("no value")
    for _ in text.elements("}"):
        if text.peek() != '"':
            raise text.fault("expected a field name in double quotes")
        name = text.value()
        if text.peek() != ":":
            raise text.fault("expected ':'")
        text.skip()
        if text.peek() == "[":
            yield name, None, []
            for number in text.elements("]"):
                yield name, number, text.value()
        else:
            yield name, None, text.value()
    if text.peek():
        raise text.fault("more text after the end of the object")


class _ReadBuffer:
    """A window of the file's text that moves forward; `_at` is the current position in it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._characters_before = 0
        self._lines_before = 0

    def peek(self) -> str:
        """Skips white space and returns the next character without consuming it; '' at the end."""
        while True:
            self._at = _end_of_whitespace(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def skip(self) -> None:
        """Consumes the character that `peek` returned."""
        self._at += 1

    def elements(self, closing: str) -> Iterator[int]:
        """Yields 0, 1, ... at the start of each element of a list or object; the caller must consume the element.

        Consumes the opening bracket, the commas and the bracket `closing`.
        """
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
        """Consumes one whole value and returns it."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not _may_be_truncated(error, len(self._text)):
                    raise self.fault(error.msg, error.pos) from None
            except RecursionError:
                raise self.fault("lists or objects are nested too deeply") from None
            else:
                # A number may continue after the window: if the window ends with 2e+, the decoder reads 2.
                if end + len("e+") < len(self._text) or self._ended:
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE_CHARACTERS:
                raise self.fault(f"a value of more than {MAX_VALUE_CHARACTERS} characters")
            self._read_more()

    def fault(self, problem: str, at: int | None = None) -> JsonError:
        """The error for a problem at a position of the window (default: the current one)."""
        at = self._at if at is None else at
        line = self._lines_before + self._text.count("\n", 0, at) + 1
        end = "" if at < len(self._text) else ", the end of the file"
        return JsonError(f"not JSON (line {line}, character {self._characters_before + at}{end}: {problem})")

    def _read_more(self) -> None:
        """Drops the consumed text and reads more: at least as much as is left, so that a long value has few retries."""
        self._characters_before += self._at
        self._lines_before += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        added = self._file.read(max(CHUNK_CHARACTERS, len(rest)))
        self._text, self._at, self._ended = rest + added, 0, not added


def _decode(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, and its end."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses to convert integers of thousands of digits
        return _FLOAT_DECODER.raw_decode(text, at)


def _end_of_whitespace(text: str, at: int) -> int:
    found = _WHITESPACE.match(text, at)
    assert found is not None, "the pattern also matches the empty string"
    return found.end()


def _may_be_truncated(error: json.JSONDecodeError, length: int) -> bool:
    """Whether the error may come from a window of `length` characters that ends within the value."""
    return error.pos >= length - _LONGEST_WORD or error.msg.startswith("Unterminated string")


_DECODER = json.JSONDecoder()
_FLOAT_DECODER = json.JSONDecoder(parse_int=float)
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_WORD = 16  # characters: -Infinity or two \uXXXX escapes, of which the decoder needs all
