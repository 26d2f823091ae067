"""Normalises texts where they enter: the lines and captions of annotation files.

Two texts that look alike become one string, so that they are drawn, compared and cached as one:

- characters that draw nothing are dropped: controls, byte-order marks, soft hyphens, zero-width characters, direction
  marks, variation selectors. A joiner (U+200C, U+200D) stays next to a letter of a script in which it changes letters,
  such as Arabic or Hindi;
- Unicode's form NFC: a letter with its marks is one character where Unicode has one;
- a run of white space is one blank, and there is none at the ends.

Letters are not replaced by similar ones: full-width letters, ligatures and capitals stay (no NFKC, no case folding).
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

DECODING_MARK = "\ufffd"
"""What decoders write in place of bytes that they cannot read. The text of the picture is lost."""

_CONTROLS = r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
_IGNORABLE = (  # Unicode's Default_Ignorable_Code_Point without the joiners, annotation marks, U+FFFE and U+FFFF
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_JOINING_SCRIPTS = (  # Arabic and its relatives, Indic scripts, Tibetan to Burmese, Khmer, Mongolian
    r"\u0600-\u07ff\u0840-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
)
_INVISIBLE = re.compile(f"[{_CONTROLS}{_IGNORABLE}]+")
_IDLE_JOINER = re.compile(f"(?<![{_JOINING_SCRIPTS}])[\u200c\u200d](?![{_JOINING_SCRIPTS}])")
_ROW_END = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
_SPACE = re.compile(r"\s")
_EMOJI = re.compile("[\U0001f000-\U0001faff\u20e3]")
# Latin, Chinese, kana, Hangul syllables and full-width forms, one blank between words: already normalised.
_PLAIN_CHARACTER = (
    r"[!-~\u00c0-\u017f\u3001-\u3003\u3041-\u3096\u30a1-\u30fa\u30fc\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]"
)
_PLAIN = re.compile(f"{_PLAIN_CHARACTER}+(?: {_PLAIN_CHARACTER}+)*")
_DONT_CARE = frozenset(("#", "##", "*", ".", "待识别"))


class NormalizedText(NamedTuple):
    """A normalised text.

    rows: number of rows of the text as it was given, without empty ones at its ends. In `text`, a blank is between
    them. changes: what was changed, in words, for a report.
    """

    text: str
    rows: int = 1
    changes: tuple[str, ...] = ()


def normalize_text(text: str) -> NormalizedText:
    """The normalised form of a line's text. A normalised text is not changed any more."""
    if _PLAIN.fullmatch(text):
        return NormalizedText(text)
    visible = _without_invisible(text)
    composed = unicodedata.normalize("NFC", visible)
    words = composed.split()
    changes = []
    if visible != text:
        changes.append("text with invisible characters (dropped)")
    if composed != visible:
        changes.append("text not in Unicode's form NFC (composed)")
    if " ".join(words) != composed:
        changes.append("text with white space other than single blanks (reduced)")
    rows = len(_ROW_END.findall(composed.strip())) + 1
    return NormalizedText(" ".join(words), rows, tuple(changes))


def normalize_caption(caption: str) -> str:
    """The caption in Unicode's form NFC, without invisible characters and with a blank for each white-space character.

    Runs of blanks stay, because the text encoder reads them as one.
    """
    if caption.isascii() and caption.isprintable():
        return caption
    return _SPACE.sub(" ", unicodedata.normalize("NFC", _without_invisible(caption)))


def is_dont_care(text: str) -> bool:
    """Whether a normalised text is a mark with which public data sets say that a line cannot be read.

    `###` (ICDAR, MLT, RCTW, LSVT, ReCTS, ArT), also as a part of a text, `#` (Total-Text), `*` (PaddleOCR), `.`
    (TextOCR) and PPOCRLabel's text of a box that nobody has read. COCO-Text and HierText leave the text empty.
    """
    return text in _DONT_CARE or "###" in text


def unsupported_features(text: str) -> tuple[str, ...]:
    """In words, what of a normalised text the fonts' plain layout may not draw as it is written."""
    if text.isascii() or _PLAIN.fullmatch(text):
        return ()
    found = []
    if any(unicodedata.bidirectional(char) in ("R", "AL") for char in text):
        found.append("right-to-left text")
    if any(unicodedata.category(char).startswith("M") for char in text):
        found.append("text with combining marks")
    if _EMOJI.search(text):
        found.append("text with emoji")
    return tuple(found)


def _without_invisible(text: str) -> str:
    return _IDLE_JOINER.sub("", _INVISIBLE.sub("", text))
