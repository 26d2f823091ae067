"""Prompts: the words to write, the caption for the text encoder, and the tokens that both become."""

from __future__ import annotations

import json

import pytest

from anytext2.core.rng import hash_rng
from anytext2.data.captions import TEXT_PHRASES, fixed_image_caption, text_caption
from anytext2.model.text_encoder import (
    PLACEHOLDER_TOKEN,
    clip_tokenizer,
    count_placeholders,
    tokenize_image_captions,
    tokenize_text_captions,
)
from distill.inference.prompt import parse_prompt
from tests.helpers.models.official_golden import GOLDEN


@pytest.mark.parametrize(
    ("prompt", "caption", "texts"),
    [
        ('a shop sign that reads "OPEN" "你好"', "a shop sign", ["OPEN", "你好"]),
        ('a shop sign that reads "OPEN", "24 HOURS".', "a shop sign", ["OPEN", "24 HOURS"]),
        ('a cup:"TEA".', "a cup", ["TEA"]),
        ("a photo of “HELLO” and ‘WORLD’ on a wall", "a photo on a wall", ["HELLO", "WORLD"]),
        ("a sign that says 'DON'T STOP' and the dogs' bowl", "a sign and the dogs' bowl", ["DON'T STOP"]),
        ("rock 'n' roll '90s poster titled 'NIGHT'", "rock 'n' roll '90s poster", ["NIGHT"]),
        ("it’s John’s bar, “JOHN’S”", "it’s John’s bar", ["JOHN’S"]),
        ('a 15" laptop that shows "HELLO"', 'a 15" laptop', ["HELLO"]),
        ("「OPEN」 and 『世界』 and «OUVERT» and „AUF“", "", ["OPEN", "世界", "OUVERT", "AUF"]),
        ('“OPEN" and "SHUT” and ＂NOW＂ on a door', "on a door", ["OPEN", "SHUT", "NOW"]),
        ('"say “hi” now" on a card', "on a card", ["say “hi” now"]),
        ('“say "hi" now” on a card', "on a card", ['say "hi" now']),
        ("「外『内』」", "", ["外『内』"]),
        (r"a card \"new\" with \'it\'", "a card \"new\" with 'it'", []),
        (r'a card with "say \"hi\"" on it', "a card", ['say "hi"']),
        ('a hotel with "5*" "*" "**"', "a hotel", ["5*", "*", "**"]),
        ('a cat\nand a sign that says\n"OPEN"\nin red', "a cat and a sign in red", ["OPEN"]),
        ('a poster with the words "A", "B" and "C" written on it, at night', "a poster, at night", ["A", "B", "C"]),
        ('Sign that reads "Wet Floor" and underneath "Watch out"', "Sign", ["Wet Floor", "Watch out"]),
        ('a magazine titled "TIME", headline: "NOW"', "a magazine", ["TIME", "NOW"]),
        ('a blackboard, the text on it is "E=mc²", by day', "a blackboard, by day", ["E=mc²"]),
        ('a wall with red letters "SALE"', "a wall with red letters", ["SALE"]),
        ('A sign says "OPEN". A red car.', "A sign. A red car", ["OPEN"]),
        ('"OPEN"', "", ["OPEN"]),
        ('the same word "TWO" "TWO"', "the same word", ["TWO", "TWO"]),
        ('一块写着"营业中"的招牌', "一块招牌", ["营业中"]),
        ("街边的咖啡馆，上面写着“早安”，下面写着“营业”", "街边的咖啡馆", ["早安", "营业"]),
        ("「営業中」と書かれた看板", "看板", ["営業中"]),
        ("一张海报，上面写着“去火星旅行”，“王小明”，背景是太空", "一张海报，背景是太空", ["去火星旅行", "王小明"]),
    ],
)
def test_quotes_and_the_caption_around_them(prompt, caption, texts):
    parsed = parse_prompt(prompt)
    assert list(parsed.texts) == texts
    assert parsed.caption == caption


def test_a_prompt_without_quotes_is_the_caption_as_it_is():
    parsed = parse_prompt("a red car,  by night. It's John's.")
    assert parsed.caption == "a red car, by night. It's John's." and parsed.texts == ()
    assert len(parsed.notes) == 1 and "put the words to write in quotes" in parsed.notes[0]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ('a sign that reads "OPEN', 'begins with "OPEN is not closed'),
        ("a sign “OPEN", "is not closed"),
        ("写着「你好", "「你好 is not closed"),
        ('a sign "" here', "text 1 ('') has nothing to draw"),
        ('"OPEN" "\u200b\ufeff"', "text 2 ('\\u200b\\ufeff') has nothing to draw"),
        ('a sign " \n "', "has nothing to draw"),
        ('"123456789012345678901"', "has 21 characters, at most 20"),
        ("'a " * 2000, "6000 characters, at most 4000"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(prompt, told):
    with pytest.raises(ValueError) as caught:
        parse_prompt(prompt)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_texts_are_normalised_as_annotations_are():
    parsed = parse_prompt('"caf\u0065\u0301\u200b  bar"')
    assert parsed.texts == ("café bar",)
    assert sum(note.startswith("text 1 (café bar): text ") for note in parsed.notes) == 3


def test_rows_of_a_text_are_lines_of_their_own():
    parsed = parse_prompt('a door "OPEN\n\nDAILY \r\n" "X"')
    assert parsed.texts == ("OPEN", "DAILY", "X") and parsed.caption == "a door"
    assert parsed.notes == ("text 1 has 2 rows: each is a line with a place of its own",)


def test_a_star_outside_of_quotes_is_no_placeholder():
    parsed = parse_prompt('a 5* hotel, * and *, with "INN"')
    assert "*" not in parsed.caption and parsed.texts == ("INN",)
    assert any("AnyText2 marks the places of words with it" in note for note in parsed.notes)
    assert not parse_prompt('a hotel with "5*"').notes


# What the official program makes of these prompts, as `*` stands beside a mark: '*,' is token 41895, '*.' 31304 and
# '"*"' 1, 9, 257, so that a line's embedding is lost or goes to another line.
@pytest.mark.parametrize("between", ['", "', '","', '" "', '""', '". "', '"; "', '" and "', "”，“", "”“"])
@pytest.mark.parametrize("end", ['"', '".', '",', '"!', '")', '" * .', "”。"])
def test_each_text_has_its_placeholder_in_the_tokens(between, end):
    parsed = parse_prompt(f'a sign (that reads "ONE{between}TWO{end}')
    assert parsed.texts == ("ONE", "TWO")
    for phrase in range(len(TEXT_PHRASES)):
        caption = text_caption(len(parsed.texts), hash_rng(phrase, 0, 0, "phrase"))
        assert count_placeholders([caption]) == (2,)
    assert PLACEHOLDER_TOKEN not in clip_tokenizer().encode(parsed.caption)
    assert "*" not in parsed.caption


def test_the_recorded_prompt_has_the_recorded_tokens():
    recorded = json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))["cond"]
    parsed = parse_prompt('a shop sign on the wall no watermarks, that reads "你好", "OPEN".')
    assert list(parsed.texts) == [text[0] for text in recorded["captions"]["texts"][:2]]
    image_ids, text_ids = (call[2][0] for call in recorded["tokenizer_calls"])
    caption = fixed_image_caption(parsed.caption, 128)
    assert caption is not None
    ids = tokenize_image_captions([caption])[0, 0].tolist()
    assert ids[: len(image_ids)] == image_ids
    captions = [text_caption(2, hash_rng(seed, 0, 0, "phrase")) for seed in range(40)]
    assert text_ids in tokenize_text_captions(captions).tolist()


def test_a_foreign_description_is_translated_without_the_texts():
    seen = []

    def translate(text: str) -> str:
        seen.append(text)
        return "a sign * with lanterns"

    parsed = parse_prompt('一块写着"营业中"的招牌', translate)
    assert seen == ["一块招牌"] and parsed.texts == ("营业中",)
    assert parsed.caption == "a sign with lanterns"
    assert parsed.notes == ("the description was translated: a sign with lanterns",)
    assert parse_prompt('a "你好" sign', translate).caption == "a sign" and len(seen) == 1


def test_without_a_translation_the_texts_are_written_all_the_same():
    parsed = parse_prompt('写着"OPEN"的招牌')
    assert parsed.texts == ("OPEN",)
    assert len(parsed.notes) == 1 and "the description is Chinese" in parsed.notes[0]
    assert "Russian" not in parsed.notes[0] and "Cyrillic" in parse_prompt('вывеска "OPEN"').notes[0]


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_an_empty_translation_is_a_mistake(answer):
    with pytest.raises(ValueError, match="translate: gave"):
        parse_prompt('招牌 "OPEN"', lambda text: answer)


def test_an_unfinished_translation_is_told():
    assert "Chinese letters left" in parse_prompt('招牌 "A"', lambda text: "a 招牌").notes[0]


def test_a_long_description_is_told():
    assert any("shortened" in note for note in parse_prompt("word " * 130 + '"A"').notes)
