"""Guesses which encoding a text has that is not UTF-8, for the message that asks to save it as UTF-8."""

from __future__ import annotations

import re
from pathlib import Path

from anytext2.data.image_formats import SNIFFED_BYTES, format_of

_TRIED_BYTES = 4096  # of a file that is not UTF-8, to find its encoding

_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32 LE"),
    (b"\0\0\xfe\xff", "UTF-32 BE"),
    (b"\xff\xfe", "UTF-16 LE"),
    (b"\xfe\xff", "UTF-16 BE"),
    (b"\x84\x31\x95\x33", "GB18030"),
)
"""Byte-order marks. Those of UTF-32 come first, because they begin like those of UTF-16."""

_ZEROS = {
    (False, True, True, True): "UTF-32 LE",
    (True, True, True, False): "UTF-32 BE",
    (False, True, False, True): "UTF-16 LE",
    (True, False, True, False): "UTF-16 BE",
}
"""Which of the first four bytes are zero, in a text that begins with ASCII characters and has no byte-order mark."""

_TRIED = {
    "GBK (GB18030)": "gb18030",
    "Big5": "big5",
    "Shift_JIS": "cp932",
    "EUC-KR": "cp949",
    "EUC-JP": "euc_jp",
    "Windows-1252": "cp1252",
    "Windows-1251": "cp1251",
}
_LEAST_PLAUSIBLE = 0.6
"""Share of the characters beyond ASCII that must be frequent ones for an encoding to be named."""

_BEYOND_ASCII, _CYRILLIC, _KANA = re.compile(r"[^\0-\x7f]+"), re.compile("[А-яЁё]+"), re.compile("[ぁ-ヺ]{2}")
_FREQUENT_KOREAN = frozenset("이다는의에가을를하고지로한은서도인기사리어")


def guess_encoding(head: bytes, part: bytes = b"") -> str:
    """The likely encoding of a text that is not UTF-8; empty if none is likely.

    head: the beginning of the text. part: some of it that does not decode as UTF-8, from the beginning of a character
    on; empty if everything does, as some encodings look like UTF-8.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for zeros, name in _ZEROS.items():
        if tuple(byte == 0 for byte in head[:4]) == zeros:
            return name
    return "ISO-2022-JP" if b"\x1b$" in head else _by_trial(part) if part else ""


def _by_trial(part: bytes) -> str:
    decoded = part.decode("utf-8", "replace")
    invalid = decoded.count("\N{REPLACEMENT CHARACTER}")
    if sum(character > "\x7f" for character in decoded) > 5 * invalid > 0:
        return "UTF-8 with damaged characters"
    scores = {name: _plausibility(part, codec) for name, codec in _TRIED.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= _LEAST_PLAUSIBLE else ""


def _plausibility(part: bytes, codec: str) -> float:
    """The share of the characters beyond ASCII that are frequent in the encoding's languages; 0 if it does not fit."""
    try:
        text = part.decode(codec)
    except UnicodeDecodeError as error:
        if error.end < len(part):
            return 0.0
        text = part[: error.start].decode(codec)  # the part ends within a character
    runs = _BEYOND_ASCII.findall(text)
    beyond = "".join(runs)
    if not beyond:
        return 0.0
    if codec == "cp1252":  # accents stand between plain letters
        return sum(len(run) for run in runs if len(run) <= 2) / len(beyond)
    if codec == "cp1251":  # Cyrillic words are written in one alphabet
        return sum(len(run) for run in runs if len(run) > 2 and _CYRILLIC.fullmatch(run)) / len(beyond)
    share = sum(_is_frequent(character, codec) for character in beyond) / len(beyond)
    if codec == "cp949" and not _FREQUENT_KOREAN.intersection(beyond):
        return share / 2  # Chinese text has the same bytes
    return share * 1.1 if codec == "cp949" or (codec == "euc_jp" and _KANA.search(beyond)) else share


def _is_frequent(character: str, codec: str) -> bool:
    """Whether a character is one of the frequent ones, which these encodings keep together."""
    lead, trail, *_ = *character.encode(codec), 0
    match codec:
        case "gb18030":
            return (0xB0 <= lead <= 0xD7 or 0xA1 <= lead <= 0xA3) and trail >= 0xA1
        case "big5":
            return 0xA1 <= lead <= 0xC6 and lead != 0xA3
        case "cp932":
            return lead in (0x81, 0x82, 0x83) or 0x88 <= lead <= 0x97
        case "cp949":
            return (0xB0 <= lead <= 0xC8 or lead == 0xA1) and trail >= 0xA1
    return lead in (0xA1, 0xA4, 0xA5) or 0xB0 <= lead <= 0xCF  # euc_jp


def encoding_problem(path: Path, error: UnicodeDecodeError | None = None) -> str:
    """Which encoding a file seems to have, and what to do; empty if it may be UTF-8. error: of decoding it as UTF-8."""
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    guess = guess_encoding(head)
    if error is not None and not guess:
        kind = format_of(head)
        if kind and kind != "JSON text":
            return f"expected a JSON text, this is: {kind}"
        if error.reason == "unexpected end of data":
            return "the file ends within a character; a part of it seems to be missing"
        begin = error.object.rfind(b'"', 0, error.start) + 1  # of the JSON string that does not decode
        guess = guess_encoding(head, error.object[begin:][:_TRIED_BYTES]) or "an unknown encoding"
    return f"not UTF-8, it looks like {guess}; save the file as UTF-8" if guess else ""
