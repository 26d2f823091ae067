"""Reading a JSON object in parts: what `json.loads` accepts is accepted, wherever the parts end."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from anytext2.data import json_stream
from anytext2.data.json_stream import JsonError, NotAnObjectError, iter_members

DOCUMENTS = [
    "{}",
    ' {"a" : 1 , "b":[ ] }\n',
    '{"a": [1, -2.5e3, "x\\u00e9\\ud83d\\ude00\\"", null, true, {"b": [[], {}]}], "c": {"d": [1, 2]}, "e": -Infinity}',
    '\r\n\t{"ü": ["日本語", "\\ud800", NaN, 12345678901234567890], "z": "' + "long " * 40 + '"}',
    '{"a": 12, "b": [0]}',
]


@pytest.fixture(params=[1, 2, 3, 7, 50, 1 << 18])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", request.param)
    return int(request.param)


def _gathered(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, number, value in iter_members(io.StringIO(text)):
        if number is None:
            found[name] = value
        else:
            assert number == len(found[name])
            found[name].append(value)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_parts_make_up_the_whole(document: str, chunk: int) -> None:
    assert repr(_gathered(document)) == repr(json.loads(document))  # by repr, as NaN is not itself


def test_what_is_not_json_is_refused_as_by_the_standard_library(chunk: int) -> None:
    rng, refused = random.Random(chunk), 0
    for _ in range(300):
        text = list(rng.choice(DOCUMENTS))
        for _ in range(rng.randint(1, 3)):
            at = rng.randint(0, len(text))
            text[at : at + rng.randint(0, 3)] = rng.choice(
                ["", "", ",", "]", "}", '"', "\\", "x", "[", "1", ":", "\x01"]
            )
        mutated = "".join(text)
        try:
            expected = json.loads(mutated)
        except json.JSONDecodeError:
            refused += 1
            with pytest.raises(JsonError):
                list(iter_members(io.StringIO(mutated)))
        else:
            if isinstance(expected, dict):
                assert len(list(iter_members(io.StringIO(mutated)))) >= len(expected)
    assert refused > 150


@pytest.mark.parametrize("text", ["[1]", '"a"', "7", "null", "NaN"])
def test_another_top_level(text: str) -> None:
    with pytest.raises(NotAnObjectError, match="got"):
        list(iter_members(io.StringIO(text)))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "line 1, character 0, the end of the file"),
        ('{"a": [1,\n2,\n oops]}', "line 3, character 14: Expecting value"),
        ('{"a": [1] "b": 2}', "character 10: expected ',' or '}'"),
        ('{"a": 1} {', "more text"),
        ('{"a": 1', "the end of the file: expected ',' or '}'"),
        ("{'a': 1}", "double quotes"),
        ('{"a" 1}', "expected ':'"),
        ('{"a": [' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + '{"b":' * 100_000, "nested too deeply"),
    ],
)
def test_faults_say_where(text: str, what: str, chunk: int) -> None:
    with pytest.raises(JsonError) as error:
        list(iter_members(io.StringIO(text)))
    assert what in str(error.value) and "not JSON" in str(error.value) and "\n" not in str(error.value)


def test_whole_numbers_of_any_length() -> None:
    assert _gathered('{"a": [' + "9" * 5000 + ', 3], "b": ' + "1" * 300 + "}") == {
        "a": [float("inf"), 3],
        "b": int("1" * 300),
    }


def test_endless_values_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", 10)
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARACTERS", 1000)
    assert _gathered('{"a": ["' + "x" * 900 + '"]}') == {"a": ["x" * 900]}
    with pytest.raises(JsonError, match="more than 1000 characters"):
        list(iter_members(io.StringIO('{"a": ["' + "x" * 5000)))


def test_only_a_window_is_held() -> None:
    class Endless(io.StringIO):
        """A list of a million numbers, made while it is read."""

        asked = 0

        def read(self, size: int | None = -1) -> str:
            self.asked += 1
            return '{"a": [' if self.asked == 1 else "1, " * 1000

    file = Endless()
    stream = iter_members(file)
    for _ in range(5001):
        next(stream)
    assert file.asked < 10, "no more is read than is asked for"
