"""The rows of the page and the quotes of the prompt, which say the same: each quoted text is a row."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distill.inference.quotes import MARK, split_quotes

MOST_LINES = 5

_MARKS = re.compile(r'[\\"＂“„‟〝”〞〟]')  # what would end a quote, or open another one


def texts_of(prompt: str) -> list[str]:
    """The texts to write, a row of a quoted text each. Raises ValueError for a quote that is not closed."""
    return [row for row, _, _ in _rows(prompt)]


def with_text(prompt: str, number: int, text: str) -> str:
    """The prompt with another text in row `number` from 0; an empty one is taken out, one more is put at the end.

    A prompt whose quotes cannot be read is returned as it is.
    """
    try:
        rows = list(_rows(prompt))
    except ValueError:
        return prompt
    if number >= len(rows):
        return f'{prompt.rstrip()} "{_escaped(text)}"'.strip() if text.strip() else prompt
    present, start, end = rows[number]
    if text.strip() == present:
        return prompt
    is_whole = end < len(prompt) and "\n" not in (prompt[start - 1], prompt[end])  # the marks are around it
    if text.strip():  # any marks become straight ones, which the new text may not close by a mark of its own
        left, right, mark = (start - 1, end + 1, '"') if is_whole else (start, end, "")
        return f"{prompt[:left]}{mark}{_escaped(text)}{mark}{prompt[right:]}"
    if is_whole:
        start, end = start - 1, end + 1
    before, after = prompt[:start].rstrip(" "), prompt[end:].lstrip(" ")
    return before + (" " if before and after else "") + after


def _rows(prompt: str) -> Iterator[tuple[str, int, int]]:
    """Each row with its place in the prompt."""
    at = 0
    outside, quoted = split_quotes(prompt)
    for text, start, end in _quotes(prompt, outside, quoted):
        assert start >= at
        at = start
        raw = prompt[start:end]
        if "\n" not in raw:
            if text.strip():
                yield text.strip(), start, end
            continue
        for row in raw.splitlines(keepends=True):
            inner = row.strip()
            if inner:
                left = at + row.index(inner)
                yield _plain(inner), left, left + len(inner)
            at += len(row)


def _quotes(prompt: str, outside: str, quoted: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    """The quoted texts with where they begin and end in the prompt, without their marks."""
    at, texts = 0, iter(quoted)
    for part in _parts(outside):
        if part is None:
            text = next(texts)
            start = at + 1
            end = _end(prompt, start, text)
            yield text, start, end
            at = end + 1
        else:
            at = _after(prompt, at, len(part))


def _parts(outside: str) -> Iterator[str | None]:
    """What stands outside of quotes, and None for each quoted text. `split_quotes` leaves no other MARK."""
    for number, part in enumerate(outside.split(MARK)):
        if number:
            yield None
        yield part


def _after(prompt: str, at: int, count: int) -> int:
    """The index after `count` characters that may be escaped, as `split_quotes` counts them."""
    for _ in range(count):
        at += 2 if _is_escaped(prompt, at) else 1
    return at


def _end(prompt: str, start: int, text: str) -> int:
    """The index after a text that may have escaped marks in it."""
    return _after(prompt, start, len(text))


def _is_escaped(prompt: str, at: int) -> bool:
    return prompt[at : at + 1] == "\\" and split_quotes(prompt[at : at + 2])[0] == prompt[at + 1 : at + 2]


def _plain(raw: str) -> str:
    """A part of a prompt without the backslashes that take a mark's meaning away."""
    kept, at = "", 0
    while at < len(raw):
        at += _is_escaped(raw, at)
        kept += raw[at]
        at += 1
    return kept


def _escaped(text: str) -> str:
    """A text as it stands between quotes: its own marks are escaped."""
    return _MARKS.sub(r"\\\g<0>", text)
