"""Random texts for synthetic pictures: English words and numbers, Chinese words and characters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from anytext2.glyphs.fonts import Font

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Alone, these characters look like a stroke or a letter.
_AMBIGUOUS_ALONE = frozenset("一二三十口日工土士人入八己已未末干千了上下")


def latin_text(rng: np.random.Generator, font: Font) -> str:
    """A random word in lower case, capitalised or in capitals, or sometimes a number of two to four digits.

    The case is one that the font can show: a font without lower case gets capitals, a script font no all capitals.
    """
    if rng.random() < 0.08:
        return "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(2, 5))))
    words = _words("words_latin.txt")
    word = words[int(rng.integers(len(words)))]
    style = rng.random()
    if font.capitals or (style < 0.3 and not font.script):
        return word.upper()
    return word.capitalize() if style < 0.65 else word


def chinese_text(rng: np.random.Generator) -> str:
    """A random Chinese word, or one to three random characters of the tiny character set."""
    if rng.random() < 0.5:
        words = _words("words_chinese.txt")
        return words[int(rng.integers(len(words)))]
    characters = _chinese_characters()
    text = "".join(characters[i] for i in rng.integers(0, len(characters), int(rng.integers(1, 4))))
    return (
        text if len(text) > 1 or text not in _AMBIGUOUS_ALONE else text + characters[int(rng.integers(len(characters)))]
    )


@lru_cache
def _words(name: str) -> tuple[str, ...]:
    return tuple((_CONFIGS / name).read_text(encoding="utf-8").split())


@lru_cache
def _chinese_characters() -> tuple[str, ...]:
    charset = (_CONFIGS / "charset_tiny.txt").read_text(encoding="utf-8").split("\n")
    return tuple(char for char in charset if char > "\u2e80")
