"""Rows and prompt say the same."""

from __future__ import annotations

import pytest

from distill.inference.prompt import parse_prompt
from launch.page.lines import texts_of, with_text

PROMPTS = {
    'a sign "OPEN" "你好"': ["OPEN", "你好"],
    'x \\" "A\\"B" y': ['A"B'],
    "no quotes": [],
    '"one\ntwo" z': ["one", "two"],
    "don't 'single' it": ["single"],
    "“curly” and 「角」": ["curly", "角"],
    '"a" "" "b"': ["a", "b"],
    'a 15" board with * "b"': ["b"],
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_rows_are_the_quoted_texts(prompt: str) -> None:
    assert texts_of(prompt) == PROMPTS[prompt]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text", ["NEW", 'with "marks" in', "it’s”", "back\\slash"])
def test_another_text_takes_the_place_of_one(prompt: str, text: str) -> None:
    rows = PROMPTS[prompt]
    for number in range(len(rows) + 1):
        changed = with_text(prompt, number, text)
        assert texts_of(changed) == [*rows[:number], text, *rows[number + 1 :]]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_unchanged_text_leaves_the_prompt(prompt: str) -> None:
    for number, text in enumerate(PROMPTS[prompt]):
        assert with_text(prompt, number, f" {text} ") == prompt
    assert with_text(prompt, 5, "  ") == prompt


def test_an_emptied_text_is_taken_out() -> None:
    assert with_text('a sign "OPEN" "你好"', 0, "") == 'a sign "你好"'
    assert with_text('a sign "OPEN" "你好"', 1, "") == 'a sign "OPEN"'
    assert texts_of(with_text('"one\ntwo" z', 0, "")) == ["two"]


def test_while_a_quote_is_open_nothing_is_changed() -> None:
    assert with_text('a "b', 0, "c") == 'a "b'
    with pytest.raises(ValueError, match="not closed"):
        texts_of('a "b')


@pytest.mark.parametrize("prompt", [prompt for prompt, texts in PROMPTS.items() if '""' not in prompt])
def test_the_pipeline_reads_the_same_texts(prompt: str) -> None:
    assert list(parse_prompt(prompt).texts) == texts_of(prompt)
