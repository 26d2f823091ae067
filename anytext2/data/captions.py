"""The two captions of a sample: the image caption for the UNet and the text caption for the WriteNet."""

from __future__ import annotations

from anytext2.core.rng import RandomSource, choice, permutation
from anytext2.data.annotation_items import PLACEHOLDER

TEXT_PHRASES = ("Text says ", "Image with words ", "The picture reads ", "Captions are ", "Texts are ", "Text: ")
_REFERENCE_PHRASES = (*TEXT_PHRASES[:-1], "Text:  ")  # the reference lacks a comma there; the tokens are the same
_MAX_CHARACTERS = 500


def image_caption(caption: str, max_words: int, rng: RandomSource) -> str:
    """The caption with '. ' appended, cut to 500 characters and shortened to `max_words` words.

    A shortened caption keeps its first sentence. Other sentences follow in random order until there are enough words.
    """
    fixed = fixed_image_caption(caption, max_words)
    return _shorten(caption, max_words, rng) if fixed is None else fixed


def fixed_image_caption(caption: str, max_words: int) -> str | None:
    """`image_caption` of a caption that is not shortened, so that it is the same in every epoch; None otherwise."""
    terminated = _terminate(caption)
    return terminated if len(terminated.split()) <= max_words else None


def _terminate(caption: str) -> str:
    return (caption + ". ")[:_MAX_CHARACTERS]


def _shorten(caption: str, max_words: int, rng: RandomSource) -> str:
    first, *others = [sentence.split() for sentence in _terminate(caption).split(".")]
    words = first[:max_words]
    for number in permutation(rng, len(others)):
        if len(words) >= max_words:
            break
        if others[number]:
            words = [*words[:-1], words[-1] + ".", *others[number]] if words else others[number]
    return " ".join(words[:max_words]) + ". "


def text_caption(n_lines: int, rng: RandomSource, like_reference: bool = False) -> str:
    """A random phrase with one placeholder for each line, for example 'Text says * , * . '.

    The spaces around a placeholder make it a token of its own.
    """
    phrase = (_REFERENCE_PHRASES if like_reference else TEXT_PHRASES)[choice(rng, len(TEXT_PHRASES))]
    return phrase + " , ".join([PLACEHOLDER] * n_lines) + " . "
