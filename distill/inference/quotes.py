"""Finds the quoted texts of a prompt.

Quotes are straight, curly, full-width, low and angle ones, double or single, and the corner brackets of Chinese and
Japanese. A backslash before a mark takes its meaning away. Apostrophes in words (don't, the dogs' bowl, '90s) and marks
of inches (15") are no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MARK = "*"
"""Stands for a quoted text in what is left of a prompt. AnyText2's placeholder, which no caption may have."""

_STRAIGHT, _OPENING, _CLOSING = '"＂', "“„‟〝", "”〞〟"
_DOUBLE = _STRAIGHT + _OPENING + _CLOSING
_SINGLE = "'＇‘’‚‛"
_BRACKETS = {"「": "」", "『": "』", "﹁": "﹂", "﹃": "﹄", "｢": "｣", "«": "»", "‹": "›"}
_ESCAPED = re.compile(rf"\\([\\{_DOUBLE}{_SINGLE}{''.join(_BRACKETS)}{''.join(_BRACKETS.values())}])")
_ELISION = re.compile(r"['‘’＇](?:\d\d?s|n['‘’＇]|em|til|tis|twas|cause|bout)(?!\w)", re.IGNORECASE)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]")


def split_quotes(prompt: str) -> tuple[str, tuple[str, ...]]:
    """The prompt with MARK in place of each quoted text, and the quoted texts in order.

    A MARK of the prompt's own becomes a blank, as in the captions of annotation files.
    Raises ValueError for a double quote or a bracket that is not closed.
    """
    outside, texts, at = [], [], 0
    while at < len(prompt):
        escaped = _ESCAPED.match(prompt, at)
        end = None if escaped else _find_end(prompt, at)
        if end is not None:
            outside.append(MARK)
            texts.append(_ESCAPED.sub(r"\1", prompt[at + 1 : end]))
            at = end + 1
            continue
        char = escaped[1] if escaped else prompt[at]
        outside.append(" " if char == MARK else char)
        at += 2 if escaped else 1
    return "".join(outside), tuple(texts)


def contains_cjk(text: str) -> bool:
    """Whether the text has a Chinese, Japanese or Korean letter."""
    return _CJK.search(text) is not None


def _find_end(prompt: str, at: int) -> int | None:
    """Where the quote that begins at `at` ends; None where none begins there."""
    char = prompt[at]
    if char in _SINGLE:
        return _single_end(prompt, at)
    if char in _DOUBLE and not _is_inch(prompt, at):
        end = _double_end(prompt, at)
    elif char in _BRACKETS:
        end = _bracket_end(prompt, at)
    else:
        return None
    if end is None:
        start = prompt[at : at + 16].split("\n")[0]
        raise ValueError(
            f"prompt: the quote that begins with {start} is not closed; close it, or write \\{char} for a mark that is "
            "no quote"
        )
    return end


def _double_end(prompt: str, at: int) -> int | None:
    """The mark that closes a double quote: a curly one inside straight ones, or the other way round, is a part of it.

    In texts that mix them ("OPEN”, “OPEN", „OPEN“), the next double mark that may stand at the end of a text.
    """
    opener, depth, is_inside, nearest = prompt[at], 0, False, None
    for index, char in _plain_characters(prompt, at + 1):
        if char not in _DOUBLE:
            continue
        if depth == 0 and (char in _CLOSING or (char in _STRAIGHT and opener in _STRAIGHT)):
            return index
        nearest = index if nearest is None else nearest
        if depth == 0 and char in _STRAIGHT and not _is_inch(prompt, index):
            may_end = not prompt[index - 1].isspace() and not _begins_text(prompt, index + 1)
            if may_end and not is_inside:
                return index
            is_inside = not is_inside
        depth += (char in _OPENING) - (char in _CLOSING)
    return nearest


def _bracket_end(prompt: str, at: int) -> int | None:
    opener, closer, depth = prompt[at], _BRACKETS[prompt[at]], 0
    for index, char in _plain_characters(prompt, at + 1):
        if char == closer and depth == 0:
            return index
        depth += (char == opener) - (char == closer)
    return None


def _single_end(prompt: str, at: int) -> int | None:
    """The mark that closes a single quote, in the same row; None where the mark at `at` is an apostrophe."""
    if _is_in_word(prompt, at - 1) or not prompt[at + 1 : at + 2].strip() or _ELISION.match(prompt, at):
        return None
    for index, char in _plain_characters(prompt, at + 1):
        if char in "\r\n":
            return None
        if (
            char in _SINGLE
            and index > at + 1
            and not prompt[index - 1].isspace()
            and not _is_in_word(prompt, index + 1)
        ):
            return index
    return None


def _plain_characters(prompt: str, start: int) -> Iterator[tuple[int, str]]:
    """The characters from `start` with their index, without those that a backslash escapes."""
    at = start
    while at < len(prompt):
        if _ESCAPED.match(prompt, at):
            at += 2
            continue
        yield at, prompt[at]
        at += 1


def _is_in_word(prompt: str, at: int) -> bool:
    """Whether the character at `at` belongs to a word that an apostrophe can be in."""
    return 0 <= at < len(prompt) and prompt[at].isalnum() and not contains_cjk(prompt[at])


def _is_inch(prompt: str, at: int) -> bool:
    """Whether the mark at `at` follows a digit and no word, as in 15" wide."""
    return prompt[at] in '"”' and prompt[max(0, at - 1) : at].isdecimal() and not _begins_text(prompt, at + 1)


def _begins_text(prompt: str, at: int) -> bool:
    return at < len(prompt) and prompt[at].isalnum()
