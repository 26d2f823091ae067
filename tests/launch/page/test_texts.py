"""Both languages say everything, and a browser gets the one that it asks for."""

from __future__ import annotations

import re
import string

import pytest

from launch.page.faults import Message
from launch.page.texts import LANGUAGES, NAMES, choose_language, say, say_message
from launch.page.texts.messages import RULES
from tests.helpers.paths import ROOT

ENGLISH, CHINESE = LANGUAGES["en"], LANGUAGES["zh"]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_the_languages_have_the_same_texts_with_the_same_places_to_fill() -> None:
    assert list(ENGLISH) == list(CHINESE) and set(NAMES) == set(LANGUAGES)
    different = [key for key in ENGLISH if placeholders(ENGLISH[key]) != placeholders(CHINESE[key])]
    assert different == []
    assert all(text.strip() == text and text for texts in LANGUAGES.values() for text in texts.values())


def test_chinese_is_chinese() -> None:
    own = {"prompt_placeholder", "language"}
    latin = [key for key, text in CHINESE.items() if not re.search(r"[\u4e00-\u9fff]", text) and key not in own]
    assert latin == []


def test_every_text_that_the_page_asks_for_is_there_and_none_is_left_over() -> None:
    sources = [p for p in (ROOT / "launch" / "page").rglob("*.py") if p.name not in ("english.py", "chinese.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    asked = set(re.findall(r'say\(lang(?:uage)?, "(\w+)"', code)) | {rule.key for rule in RULES}
    asked |= set(re.findall(r'(?:PageFault|Message)\(\s*(?:field|"\w+"), "(\w+)"', code))
    assert asked <= set(ENGLISH)
    assert len(asked) > 60
    starts = ("tab_", "example_", "empty_", "canvas_", "color_", "order_", "name_", "can_", "steps_")
    unused = [key for key in ENGLISH if f'"{key}"' not in code and not key.startswith(starts)]
    assert unused == []


def test_messages_are_filled_in_and_names_translated() -> None:
    small = Message("places", "letters_small", ("OPEN", "17", "the tiny model", "40"))
    assert "17 px high, the tiny model writes from 40 px" in say_message("en", small)
    assert "微型模型至少要 40 像素" in say_message("zh", small)
    assert say_message("zh", Message("prompt", "", (), "as it is")) == "as it is"
    assert say("zh", "number_missing", "x").startswith("x")


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("de-DE,de;q=0.9,zh-TW;q=0.8,en;q=0.7", "zh"),
        ("fr", "en"),
        ("", "en"),
        ("en;q=0.1, zh-Hans;q=0.5", "zh"),
        ("zh;q=0, en", "en"),
        ("zh;q=x,*", "en"),
    ],
)
def test_the_browser_s_language_is_taken(accepted: str, language: str) -> None:
    assert choose_language(accepted) == language
