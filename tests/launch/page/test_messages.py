"""What the pipeline says is understood: with each of its sentences made by the pipeline itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anytext2.glyphs.fonts import load_font_table
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.pipeline import drawing_limits
from distill.inference.preparation import RequestPreparation
from distill.inference.request import DrawingRequest
from launch.page.faults import FIELDS, Message
from launch.page.texts.messages import RULES, understand

PICTURE = np.full((300, 400, 3), 200, np.uint8)
THIN = np.zeros((128, 128), np.uint8)
THIN[60:61, 10:110] = 255
MANY = np.zeros((256, 256), np.uint8)
MANY[4::6, 4::6] = 255
BENT = np.zeros((128, 128), np.uint8)
BENT[10:118, 10:20] = BENT[108:118, 10:118] = 255

FAULTS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "open": ({"prompt": 'a "b'}, "quote_open", ('"b',)),
    "nothing": ({"prompt": '"A" "\u200b"'}, "text_empty", ("2",)),
    "21": ({"prompt": f'"{"A" * 21}"'}, "text_long", ("A" * 21, "21", "20")),
    "4001": ({"prompt": "a" * 4001}, "prompt_long", ("4001", "4000")),
    "six": ({"prompt": '"A" ' * 6}, "texts_many", ("6", "5")),
    "few": ({"prompt": '"A" "B"', "boxes": [[4, 4, 120, 60]]}, "places_few", ("1", "2")),
    "wide": ({"prompt": '"ABCDEFGHIJKLMNO"'}, "layout_wide", ("ABCDEFGHIJKLMNO", "40", "128 x 128")),
    "full": ({"prompt": '"A" "B" "C" "D" "E"', "height": 64, "width": 64}, "layout_full", ("5", "40", "64 x 64")),
    "empty mask": ({"prompt": '"A"', "mask": np.zeros((128, 128), np.uint8)}, "mask_empty", ()),
    "flat mask": ({"prompt": '"A"', "mask": THIN}, "mask_thin", ("60,60",)),
    "distorted": ({"prompt": '"A"', "mask": THIN[:, :20]}, "mask_distorted", ("20 x 128", "128 x 128")),
    "no place": ({"prompt": '"A"', "image": PICTURE}, "edit_places", ()),
    "unreadable": ({"prompt": '"A"', "image": "none.png"}, "picture_unreadable", ()),
    "font": ({"prompt": '"A"', "fonts": ["Nope"]}, "font_unknown", ()),
    "step": ({"prompt": '"A"', "height": 100}, "size_step", ("height", "100", "16", "96")),
}
NOTES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "no quotes": ({"prompt": "a wall"}, "no_quotes", ()),
    "chinese": ({"prompt": '一面墙 "A"'}, "not_english", ("Chinese",)),
    "star": ({"prompt": 'a * "A"'}, "star_dropped", ()),
    "long": ({"prompt": "word " * 200 + '"A"'}, "prompt_cut", ("128", "500")),
    "rows": ({"prompt": '"A\nB"'}, "text_rows", ("1", "2")),
    "invisible": ({"prompt": '"A\u200bB"'}, "text_invisible", ("AB",)),
    "left": ({"prompt": '"A"', "boxes": [[4, 4, 120, 60], [4, 64, 120, 124]]}, "places_many", ("1", "2", "1")),
    "bent": ({"prompt": '"A"', "mask": BENT}, "place_bent", ("1",)),
    "small": (
        {"prompt": '"OPEN"', "boxes": [[4, 4, 64, 24]]},
        "letters_small",
        ("OPEN", "22", "the tiny model", "40"),
    ),
    "window": (
        {"prompt": '"A"', "image": PICTURE, "boxes": [[20, 20, 380, 280]]},
        "window_scaled",
        ("148 x 111",),
    ),
}


@pytest.fixture(scope="module")
def prepare() -> RequestPreparation:
    recipe = load_recipe(DEFAULT_RECIPE)
    return RequestPreparation(recipe, load_font_table(), 16, drawing_limits(recipe))


@pytest.mark.parametrize("case", FAULTS)
def test_errors_are_understood(prepare: RequestPreparation, case: str) -> None:
    settings, key, arguments = FAULTS[case]
    with pytest.raises(ValueError) as error:
        prepare(DrawingRequest(**settings))
    (message,) = understand(str(error.value))
    assert (message.key, message.text) == (key, ""), str(error.value)
    assert message.field in FIELDS
    assert not arguments or message.arguments == arguments


@pytest.mark.parametrize("case", NOTES)
def test_notes_are_understood(prepare: RequestPreparation, case: str) -> None:
    settings, key, arguments = NOTES[case]
    notes = prepare(DrawingRequest(**settings)).warnings
    messages = [message for note in notes for message in understand(note)]
    assert all(message.key for message in messages), notes
    found = [message for message in messages if message.key == key]
    assert found, notes
    assert not arguments or found[0].arguments == arguments, notes


def test_a_picture_that_is_none_is_understood(prepare: RequestPreparation, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(ValueError) as error:
        prepare(DrawingRequest(prompt='"A"', image=tmp_path / "x.png"))
    assert [message.key for message in understand(str(error.value))] == ["picture_unreadable"]


def test_what_no_rule_knows_is_shown_as_it_is() -> None:
    assert understand("mask: quite new") == [Message("places", "", (), "mask: quite new")]
    assert understand("a new sentence") == [Message("settings", "", (), "a new sentence")]
    assert {rule.field for rule in RULES} <= set(FIELDS)
