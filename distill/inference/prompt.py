"""Splits a prompt into the image caption and the texts to write, which stand in quotes.

The official program has two prompts and replaces quoted texts by `*` wherever they stand, which the text encoder then
misses beside a comma or a full stop. Here the image caption has no placeholder at all, and the text caption is built by
`anytext2.data.captions.text_caption`, as in training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anytext2.data.captions import fixed_image_caption
from anytext2.data.options import DatasetConfig
from anytext2.data.text import normalize_caption, normalize_text, unsupported_features
from anytext2.glyphs.languages import infer_language
from distill.inference.quotes import MARK, contains_cjk, split_quotes

MAX_CHARS = 20
"""Characters of a text that AnyText2 writes. Its own program cuts longer ones."""

MAX_PROMPT = 4000
"""Characters of a prompt. An image caption has at most 500."""

_MAX_CAPTION = 498  # characters before the '. ' that ends an image caption of at most 500

_NOUN = (
    r"(?:words?|texts?|letters?|lettering|title|headline|heading|caption|slogan|tagline|inscription|message|phrase|"
    r"writing|names?)"
)
_VERB = (
    r"(?:reads?|reading|says?|saying|shows|showing|spells?|spelling|states|stating|writes?|titled|entitled|named|called|"
    r"labell?ed|captioned|inscribed|lettered|(?:which|that) (?:shows|displays))"
)
# What leads to a quoted text, and says nothing about the picture without it. Longer phrases stand first.
_LEAD_IN = re.compile(
    rf"(?:\s*,)?\s*(?:\b(?:(?:that|which|and|it)\s+)?{_VERB}"
    rf"|(?:^|\b(?:and|with|has|having|bearing|in|of|the|a|that)\b|,)\s*(?:the\s+|a\s+)?{_NOUN}(?:\s+on\s+(?:it|them))?"
    rf"(?:\s+(?:is|are|{_VERB}))?|\b(?:and\s+)?(?:underneath|beneath|below)(?:\s+(?:it|that|them))?"
    r"|\b(?:with|has|having|bearing|of|saying)(?:\s+(?:the|a))?)"
    rf"\s*[:,]?\s*\{MARK}",
    re.IGNORECASE,
)
_CHINESE_LEAD_IN = re.compile(
    r"(?:[，,、]\s*)?(?:[上下里]面|[上下]边|上头|中间|其上)?(?:用?[^，。,.\s]{0,4}体)?"
    r"(?:书写着?|写着|写有|写上|写的是|写了|写道|印着|印有|刻着|刻有|贴着|显示着?|内容[是为]|文字[是为]|标题[是为]|题为|标有|带有|"
    rf"的?文字|的?字样|有)[:：]?\s*\{MARK}"
)
# What follows on a quoted text in the same way.
_FOLLOWER = re.compile(
    rf"\{MARK}\s*(?:(?:is|are)\s+)?(?:\b(?:written|printed|painted|engraved|carved|displayed)\b)?"
    r"(?:\s*\b(?:on|across|in|at|above|below)\s+(?:it|them|top)\b)?",
    re.IGNORECASE,
)
_CHINESE_FOLLOWER = re.compile(
    rf"\{MARK}(?:と(?:書かれた|書いてある|書いた|表示された)|という(?:文字|言葉)[のがを]?"
    r"|(?:(?:这|几|[一二两三四五六七八九十]|\d)*个?大?字样?)?(?:的?(?:文字|字样|字))?的?)"
)
_LIST = re.compile(rf"\{MARK}(?:[\s,;:.、，；。：/&+|]|\b(?:and|or|then)\b|[和与及或跟と])*\{MARK}", re.IGNORECASE)
_SPACE_BEFORE = re.compile(r"\s+([,.;:!?，。；：！？])")
_DOUBLED = re.compile(r"([,;:，；：、])(?:\s*[,;:，；：、])+|[,;:，；：、]\s*([.!?。！？])")
_ENDS = " \t,;:，；：、"


@dataclass(frozen=True)
class ParsedPrompt:
    """caption: the image caption, in English and without the words to write; it has no `*` and no final '. '.

    texts: what to write, one for each line, normalised as annotations are. notes: what a user should know, a line each.
    """

    caption: str
    texts: tuple[str, ...]
    notes: tuple[str, ...]


def parse_prompt(
    prompt: str, translate: Callable[[str], str] | None = None, max_chars: int = MAX_CHARS
) -> ParsedPrompt:
    """The caption and the texts of a prompt.

    translate: gives the English of a description in another language. It is not called for the texts.
    Raises ValueError, in one line, for a quote that is not closed, a text without anything to draw or longer than
    `max_chars`, and for what `translate` raises it.
    """
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"prompt: {len(prompt)} characters, at most {MAX_PROMPT} are read; shorten the description")
    outside, quoted = split_quotes(prompt)
    texts, notes = _normalized_texts(quoted, max_chars)
    caption = _without_marks(normalize_caption(outside)) if quoted else " ".join(normalize_caption(outside).split())
    if not quoted:
        notes.append(
            'no words in quotes: nothing is written; put the words to write in quotes, as in: a sign that reads "OPEN"'
        )
    caption, more_notes = _in_english(caption, translate)
    if prompt.count(MARK) > "".join(quoted).count(MARK):
        notes.append(f"the {MARK} outside of quotes is left out: AnyText2 marks the places of words with it")
    if fixed_image_caption(caption, DatasetConfig().max_caption_words) is None or len(caption) > _MAX_CAPTION:
        notes.append(f"the description is shortened to {DatasetConfig().max_caption_words} words or 500 characters")
    return ParsedPrompt(caption, tuple(texts), (*notes, *more_notes))


def _normalized_texts(quoted: Sequence[str], max_chars: int) -> tuple[list[str], list[str]]:
    """The normalised texts, one for each row of a quoted text, and notes on what was changed."""
    texts: list[str] = []
    notes: list[str] = []
    for number, given in enumerate(quoted, start=1):
        rows = [row for row in map(normalize_text, map(str.strip, given.splitlines())) if row.text]
        if not rows:
            raise ValueError(
                f"prompt: text {number} ({given!r}) has nothing to draw; write a character between the quotes"
            )
        if len(rows) > 1:
            notes.append(f"text {number} has {len(rows)} rows: each is a line with a place of its own")
        for row in rows:
            if len(row.text) > max_chars:
                raise ValueError(
                    f"prompt: text {number} ({row.text!r}) has {len(row.text)} characters, at most {max_chars} are "
                    "written in a line; shorten it, or quote its parts one by one"
                )
            notes += [f"text {number} ({row.text}): {what}" for what in (*row.changes, *unsupported_features(row.text))]
        texts += [row.text for row in rows]
    return texts, notes


def _without_marks(outside: str) -> str:
    """The rest of a prompt without the marks of its texts, and without the words that only lead to a text."""
    while (joined := _LIST.sub(MARK, outside)) != outside:
        outside = joined
    for phrase in (_CHINESE_FOLLOWER, _FOLLOWER, _CHINESE_LEAD_IN, _LEAD_IN):
        outside = phrase.sub(MARK, outside)
    words = " ".join(outside.replace(MARK, " ").split())
    words = _DOUBLED.sub(lambda found: found[1] or found[2], _SPACE_BEFORE.sub(r"\1", words))
    words = re.sub(rf"(?<={_CJK_CLASS}) (?={_CJK_CLASS})", "", words) if contains_cjk(words) else words
    return words.strip(_ENDS).removesuffix(".").removesuffix("。").strip(_ENDS).removeprefix("and ")


_CJK_CLASS = r"[\u3001-\u30ff\u3400-\u9fff]"


def _in_english(caption: str, translate: Callable[[str], str] | None) -> tuple[str, list[str]]:
    """The caption for the text encoder, which reads English only, and notes on its language."""
    language = infer_language(caption)
    if not contains_cjk(caption) and language == "Latin":
        return caption, []
    language = "Chinese" if language == "Latin" else language
    if translate is None:
        return caption, [
            f"the description is {language}, which the text encoder does not read: the words in quotes are drawn, the "
            "rest is not followed; write it in English, or configure a translation"
        ]
    english = translate(caption)
    if not isinstance(english, str) or not english.strip():
        raise ValueError(f"translate: gave {english!r} for {caption[:40]!r}; a text is needed")
    english = " ".join(normalize_caption(english).replace(MARK, " ").split())
    note = f"the description was translated: {english}"
    if contains_cjk(english):
        note = f"the translation of the description has {infer_language(english)} letters left: {english}"
    return english, [note]
