"""The languages of the page. Each is one dictionary with the same keys."""

from __future__ import annotations

from typing import Any

from launch.page.faults import Message
from launch.page.texts.chinese import CHINESE
from launch.page.texts.english import ENGLISH

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
NAMES = {"en": "English", "zh": "中文"}


def say(language: str, key: str, *arguments: Any) -> str:
    """The text of a key, with its `{0}`, `{1}` filled in."""
    text = LANGUAGES[language][key]
    return text.format(*arguments) if arguments else text


def say_message(language: str, message: Message) -> str:
    """A message in a language. Arguments that are keys of their own, as names of fields, are translated, too."""
    if not message.key:
        return message.text
    texts = LANGUAGES[language]
    return say(language, message.key, *(texts.get(f"name_{value}", value) for value in message.arguments))


def choose_language(accepted: str) -> str:
    """The language for a browser's Accept-Language, such as `zh-CN,zh;q=0.9,en;q=0.8`; English where none fits."""
    wishes = []
    for place, part in enumerate(accepted.split(",")):
        name, _, weight = part.strip().partition(";q=")
        try:
            wishes.append((-float(weight or 1), place, name.split("-")[0].lower()))
        except ValueError:
            continue
    return next((name for weight, _, name in sorted(wishes) if name in LANGUAGES and weight < 0), "en")
