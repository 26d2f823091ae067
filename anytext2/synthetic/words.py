"""What synthetic pictures say: English words and numbers, Chinese words and random characters."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from anytext2.glyphs.fonts import Font

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# Read alone, these are a stroke or a letter rather than a character.
_NOT_ALONE = frozenset("一二三十口日工土士人入八己已未末干千了上下")


def latin_text(rng: np.random.Generator, font: Font) -> str:
    """A word as the font can show it (lower case, capitalised or in capitals), or now and then a number."""
    if rng.random() < 0.08:
        return "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(2, 5))))
    words = _words("words_latin.txt")
    word = words[int(rng.integers(len(words)))]
    style = rng.random()
    if font.capitals or (style < 0.3 and not font.script):
        return word.upper()
    return word.capitalize() if style < 0.65 else word


def chinese_text(rng: np.random.Generator) -> str:
    """A Chinese word of two to four characters, or one to three random characters of the tiny character set."""
    if rng.random() < 0.5:
        words = _words("words_chinese.txt")
        return words[int(rng.integers(len(words)))]
    characters = _chinese_characters()
    text = "".join(characters[i] for i in rng.integers(0, len(characters), int(rng.integers(1, 4))))
    return text if len(text) > 1 or text not in _NOT_ALONE else text + characters[int(rng.integers(len(characters)))]


@lru_cache
def _words(name: str) -> tuple[str, ...]:
    return tuple((_CONFIGS / name).read_text(encoding="utf-8").split())


@lru_cache
def _chinese_characters() -> tuple[str, ...]:
    charset = (_CONFIGS / "charset_tiny.txt").read_text(encoding="utf-8").split("\n")
    return tuple(char for char in charset if char > "\u2e80")
