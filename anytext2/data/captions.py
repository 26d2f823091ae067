"""The two captions of a sample: what the picture shows, for the UNet, and what its text says, for the WriteNet."""

from __future__ import annotations

from anytext2.core.rng import RandomSource, choice, permutation
from anytext2.data.annotation_items import PLACEHOLDER

TEXT_PHRASES = ("Text says ", "Image with words ", "The picture reads ", "Captions are ", "Texts are ", "Text: ")
_MAX_CHARACTERS = 500


def image_caption(caption: str, max_words: int, rng: RandomSource) -> str:
    """The caption with its final ' . ', cut to 500 characters; a longer one than max_words keeps its first sentence
    and as many of the others, in random order, as there is room for."""
    whole = fixed_image_caption(caption, max_words)
    return _shortened(caption, max_words, rng) if whole is None else whole


def fixed_image_caption(caption: str, max_words: int) -> str | None:
    """`image_caption` where it is always the same; None for a caption that is shortened at random."""
    ended = _ended(caption)
    return ended if len(ended.split()) <= max_words else None


def _ended(caption: str) -> str:
    return (caption + ". ")[:_MAX_CHARACTERS]


def _shortened(caption: str, max_words: int, rng: RandomSource) -> str:
    first, *others = [sentence.split() for sentence in _ended(caption).split(".")]
    words = first[:max_words]
    for number in permutation(rng, len(others)):
        if len(words) >= max_words:
            break
        if others[number]:
            words = [*words[:-1], words[-1] + ".", *others[number]] if words else others[number]
    return " ".join(words[:max_words]) + ". "


def text_caption(n_lines: int, rng: RandomSource) -> str:
    """One placeholder a line, each between spaces (only so does the tokeniser keep it whole): 'Text says * , * . '."""
    phrase = TEXT_PHRASES[choice(rng, len(TEXT_PHRASES))]
    return phrase + " , ".join([PLACEHOLDER] * n_lines) + " . "
