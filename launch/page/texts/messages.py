"""What the pipeline says, in the languages of the page and beside the field that it is about.

The pipeline's errors and notes are English sentences for a command line. Each rule recognises one of them; what no rule
recognises is shown as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from launch.page.faults import Message


class Rule(NamedTuple):
    """pattern: the whole of a sentence, its groups are what the text is filled with. key: of the texts."""

    pattern: re.Pattern[str]
    field: str
    key: str


def _rule(pattern: str, field: str, key: str) -> Rule:
    return Rule(re.compile(pattern, re.DOTALL), field, key)


RULES = (
    _rule(r"prompt: the quote that begins with (.*) is not closed; .*", "prompt", "quote_open"),
    _rule(r"prompt: text (\d+) \(.*\) has nothing to draw; .*", "prompt", "text_empty"),
    _rule(r"prompt: text \d+ \('(.*)'\) has (\d+) characters, at most (\d+) .*", "prompt", "text_long"),
    _rule(r"prompt: (\d+) characters, at most (\d+) are read; .*", "prompt", "prompt_long"),
    _rule(r"(\d+) texts in the prompt: at most (\d+) .*", "prompt", "texts_many"),
    _rule(r"text '(.*)': no font of the font table .*", "prompt", "text_unknown"),
    _rule(r"no words in quotes: .*", "prompt", "no_quotes"),
    _rule(r"the description is (\w+), which the text encoder does not read: .*", "prompt", "not_english"),
    _rule(r"the description was translated: (.*)", "prompt", "translated"),
    _rule(r"the \* outside of quotes is left out: .*", "prompt", "star_dropped"),
    _rule(r"the description is shortened to (\d+) words or (\d+) characters", "prompt", "prompt_cut"),
    _rule(r"text (\d+) has (\d+) rows: .*", "prompt", "text_rows"),
    _rule(r"text \d+ \((.*)\): text with invisible characters \(dropped\)", "prompt", "text_invisible"),
    _rule(r"text \d+ \((.*)\): right-to-left text", "prompt", "text_right_to_left"),
    _rule(r"text \d+ \((.*)\): text with combining marks", "prompt", "text_marks"),
    _rule(r"text \d+ \((.*)\): text with emoji", "prompt", "text_emoji"),
    _rule(r"places: (\d+) for (\d+) texts; .*", "places", "places_few"),
    _rule(r"(\d+) of (\d+) places are not used, there are (\d+) texts", "places", "places_many"),
    _rule(r"place (\d+) is bent: .*", "places", "place_bent"),
    _rule(r"place (\d+) is outside of the picture, .*", "places", "place_outside"),
    _rule(r"layout: \"(.*)\" in letters of (\d+) px is wider than a picture of (.*?); .*", "places", "layout_wide"),
    _rule(r"layout: (\d+) texts in letters of (\d+) px do not fit in a picture of (.*?); .*", "places", "layout_full"),
    _rule(r"mask: empty; .*", "places", "mask_empty"),
    _rule(r"mask: no shape of (\d+) pixels or more; .*", "places", "mask_small"),
    _rule(r"mask: (\d+) shapes; .*", "places", "mask_many"),
    _rule(r"mask: (\d+ x \d+) pixels do not fit a picture of (\d+ x \d+); .*", "places", "mask_distorted"),
    _rule(r"mask: the shape at (\S+) is only a thin line; .*", "places", "mask_thin"),
    _rule(r"image: say where to write in it: .*", "places", "edit_places"),
    _rule(r"(?:image|mask) (?:.*?): .*", "places", "picture_unreadable"),
    _rule(
        r"\"(.*)\": letters would be (\d+) px high; (.*) writes from (\d+): .*",
        "places",
        "letters_small",
    ),
    _rule(r"of the picture's (.*) pixels the model sees ([^;]*)", "places", "window_part"),
    _rule(r"the new text is drawn at (.*) pixels and enlarged", "places", "window_scaled"),
    _rule(r"'(.*)': the fonts have no (.*); the rest is written", "prompt", "characters_missing"),
    _rule(r"'(.*)': (\S+) has no (.*); these keep the model's font", "lines", "font_characters"),
    _rule(r"colour '(.*)': .*", "lines", "color_unknown"),
    _rule(r"font .*: (?:neither a file|is no font file) .*", "lines", "font_unknown"),
    _rule(r"font .*", "imitation", "imitation_unreadable"),
    _rule(r"(height|width): (\d+) must be a multiple of (\d+), such as (\d+)", "settings", "size_step"),
    _rule(r"num_inference_steps.*|student steps.*", "settings", "steps_refused"),
)

_FALLBACK = {"prompt": "prompt", "text": "prompt", "place": "places", "layout": "places", "mask": "places"}


def understand(sentence: str) -> list[Message]:
    """The messages of a sentence of the pipeline: usually one, of joined sentences one each."""
    parts = sentence.split("; ") if sentence.startswith("of the picture's ") else [sentence]
    return [_understand_one(" ".join(part.split()) if "\n" in part else part) for part in parts]


def _understand_one(sentence: str) -> Message:
    for rule in RULES:
        if found := rule.pattern.fullmatch(sentence):
            return Message(rule.field, rule.key, found.groups())
    start = re.match(r"[a-z]+", sentence)
    return Message(_FALLBACK.get(start[0] if start else "", "settings"), "", (), sentence)
