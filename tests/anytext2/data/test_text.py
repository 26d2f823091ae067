"""Normalisation of texts: what becomes equal, what is dropped, which marks say that there is nothing to read."""

from __future__ import annotations

import random
from unicodedata import category, normalize

import pytest

from anytext2.data.text import _PLAIN, is_dont_care, normalize_caption, normalize_text, unsupported_features

JAPANESE, VIETNAMESE, GERMAN = "がぎぐパブ", "bệnh viện Đà Nẵng", "Grüße aus Köln Öl"


@pytest.mark.parametrize("word", [JAPANESE, VIETNAMESE, GERMAN, "한국어", "Ångström"])
@pytest.mark.parametrize("form", ["NFD", "NFC"])
def test_forms_of_a_word_become_one(word: str, form: str) -> None:
    given = normalize(form, word)  # type: ignore[arg-type]
    normalized = normalize_text(given)
    assert normalized.text == normalize("NFC", word) and normalized.rows == 1
    assert normalized.changes == (() if form == "NFC" else ("text not in Unicode's form NFC (composed)",))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("\ufeffOPEN", "OPEN"),  # a byte-order mark, from files that were joined
        ("OP\ufeffEN", "OPEN"),
        ("OP\u200bEN\u200c", "OPEN"),
        ("e\u200b\u0301", "é"),  # dropped before it could keep the accent apart
        ("Donau\u00addampf", "Donaudampf"),
        ("\x00O\x07PEN\x7f", "OPEN"),
        ("\u202eOPEN\u202c", "OPEN"),
        ("葛\U000e0100城", "葛城"),
        ("☂\ufe0f", "☂"),
        ("\u3164\u115f", ""),  # Hangul fillers: letters by category, but nothing is drawn
        ("\u200b", ""),
        ("👩\u200d🎤", "👩🎤"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the non-joiner is part of the Persian word
        ("क्\u200dष", "क्\u200dष"),
        ("A\u200dB", "AB"),
    ],
)
def test_what_draws_nothing_is_dropped_but_for_joiners_that_change_letters(given: str, text: str) -> None:
    normalized = normalize_text(given)
    assert normalized.text == text
    assert ("text with invisible characters (dropped)" in normalized.changes) == (given != text)


@pytest.mark.parametrize(
    ("given", "text", "rows"),
    [
        ("a\tb", "a b", 1),
        ("  a   b\u3000c\u00a0", "a b c", 1),
        ("OPEN\n", "OPEN", 1),
        ("\r\nOPEN\r\n\r\n", "OPEN", 1),
        ("OPEN\nSHOP", "OPEN SHOP", 2),
        ("OPEN\r\nSHOP\r\nNOW", "OPEN SHOP NOW", 3),
        *((f"a{end}b", "a b", 2) for end in "\r\v\f\x85\u2028\u2029"),
        (" \t\n", "", 1),
    ],
)
def test_white_space_and_rows(given: str, text: str, rows: int) -> None:
    assert (normalize_text(given).text, normalize_text(given).rows) == (text, rows)


def test_letters_are_not_replaced_by_similar_ones() -> None:
    for text in ("ＯＰＥＮ", "ﬁsh", "m²", "Straße", "“no”", "①"):
        assert normalize_text(text).text == text


def test_a_normalised_text_is_not_changed_any_more() -> None:
    rng = random.Random(0)
    odd = "\u200b\u200c\u200d\ufeff\u00ad\u3099\u0301\u0323\u3000\u2028\u0628\u0915\u094d\u1100\u1161\u212b\uf900が"
    pool = [*map(chr, range(0x180)), *odd, *odd]
    for _ in range(3000):
        given = "".join(rng.choices(pool, k=rng.randint(0, 8)))
        text = normalize_text(given).text
        again = normalize_text(text)
        assert (again.text, again.changes, again.rows) == (text, (), 1), ascii(given)
        assert normalize_text(normalize("NFD", given)).text == text, ascii(given)


def test_the_quick_way_takes_only_characters_that_stay_as_they_are() -> None:
    plain = [char for char in map(chr, range(0xD800)) if _PLAIN.fullmatch(char)]
    assert len(plain) > 20_000 and all(normalize("NFC", char) == char and char.isprintable() for char in plain)
    assert not any(category(char).startswith(("M", "C", "Z")) for char in plain)
    text = "".join(plain)
    assert normalize("NFC", text) == text


@pytest.mark.parametrize("text", ["###", "#", "##", "####", "*", ".", "SHOP ###", "待识别"])
def test_marks_of_lines_that_cannot_be_read(text: str) -> None:
    assert is_dont_care(text)


@pytest.mark.parametrize("text", ["#1", "C#", "* sale *", "**", "...", "No. 5", "", "待识别码"])
def test_texts_that_only_look_like_marks(text: str) -> None:
    assert not is_dont_care(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("OPEN", ()),
        ("店 Öl ★", ()),
        ("مفتوح", ("right-to-left text",)),
        ("שלום", ("right-to-left text",)),
        ("เปิด", ("text with combining marks",)),
        ("q\u0303", ("text with combining marks",)),  # no composed form
        ("😀 OPEN", ("text with emoji",)),
    ],
)
def test_what_is_not_supported_is_named(text: str, found: tuple[str, ...]) -> None:
    assert unsupported_features(text) == found


def test_captions_keep_their_blanks() -> None:
    assert normalize_caption("a  shop ") == "a  shop "
    assert normalize_caption("a\tshop\r\nin u\u0308\ufeff ") == "a shop  in ü "
