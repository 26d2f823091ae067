"""Infers the language of a line from the script of its text, for annotations that do not name it.

The names are those of AnyWord and of fonts/fonts.yaml. The language chooses the fonts only.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

_LANGUAGES = {
    "LATIN": "Latin",
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "KATAKANA-HIRAGANA": "Japanese",
    "HANGUL": "Korean",
    "ARABIC": "Arabic",
    "DEVANAGARI": "Hindi",
    "BENGALI": "Bangla",
}
"""First word of a letter's Unicode name -> language. Other scripts are their own name, such as Thai."""

_WITH_HAN = ("Japanese", "Korean")  # languages whose texts may have more Chinese characters than their own


def infer_language(text: str) -> str:
    """The language of most letters; Latin for a text without letters, such as a number.

    Chinese characters beside kana are Japanese, beside Hangul Korean.
    """
    if text.isascii():
        return "Latin"
    letters = (char for char in unicodedata.normalize("NFKC", text) if char.isalpha())
    counts = Counter(_language(letter) for letter in letters)
    for language in _WITH_HAN:
        if counts[language]:
            counts[language] += counts.pop("Chinese", 0)
    return counts.most_common(1)[0][0] if counts.total() else "Latin"


def _language(letter: str) -> str:
    script = unicodedata.name(letter, "LATIN").split()[0]
    return _LANGUAGES.get(script, script.capitalize())
