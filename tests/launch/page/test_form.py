"""A form becomes a request, and bad input a message beside its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.inference.request import Imitation
from launch.page.canvas import write_canvas
from launch.page.faults import FIELDS
from launch.page.form import EDIT, IMITATE, NAMES, RequestRules, default_form, fault_messages
from launch.page.limits import Uploads


@pytest.fixture
def rules(tmp_path: Path) -> RequestRules:
    (tmp_path / "incoming").mkdir()
    return RequestRules(Uploads(tmp_path / "kept", tmp_path / "incoming"), True, 128)


@pytest.fixture
def picture(rules: RequestRules, tmp_path: Path) -> str:
    Image.new("RGB", (200, 100)).save(tmp_path / "incoming" / "a.png")
    return rules.uploads.take(str(tmp_path / "incoming" / "a.png"), "places")


def form(**fields: Any) -> dict[str, Any]:
    return {**default_form(128, 4), "prompt": 'a wall "A" "B"', **fields}


def fault(rules: RequestRules, **fields: Any) -> tuple[str, str]:
    with pytest.raises(ValueError) as error:
        rules.request(form(**fields))
    (message,) = fault_messages(error.value)
    assert message.field in FIELDS
    return message.field, message.key


def test_a_new_form_can_be_written_as_json_and_asks_for_what_the_page_shows(rules: RequestRules) -> None:
    assert set(json.loads(json.dumps(form()))) == set(NAMES)
    request = rules.request(form())
    assert (request.num_inference_steps, request.teacher, request.teacher_steps) == (4, True, 20)
    assert (request.width, request.height, request.seed, request.num_images_per_prompt) == (128, 128, 1, 1)
    assert not request.colors and not request.fonts and not request.polygons and request.image is None


def test_rows_places_and_settings_are_passed_on(rules: RequestRules, picture: str) -> None:
    request = rules.request(
        form(
            canvas_new=write_canvas([(10, 10, 100, 60), (10, 70, 100, 120)]),
            color1="#FF8800",
            font0="Lobster",
            font1=IMITATE,
            canvas_imitation=write_canvas([(20, 10, 180, 90)], picture),
            steps=2,
            seed=9,
            strength=0.5,
            guidance=3.0,
            teacher=False,
        )
    )
    assert list(request.colors) == [None, "#FF8800"] and request.fonts[0] == "Lobster"
    assert isinstance(request.fonts[1], Imitation) and request.fonts[1].image == rules.uploads.path(picture)
    assert request.polygons[0] == [[10, 10], [100, 10], [100, 60], [10, 60]]
    assert (request.num_inference_steps, request.seed, request.strength, request.teacher) == (2, 9, 0.5, False)
    assert request.teacher_guidance == 3.0 and request.guidance_scale is None
    assert request.revise and not rules.request(form()).revise  # drawn places are shrunk to their texts


def test_a_photograph_keeps_its_size(rules: RequestRules, picture: str) -> None:
    request = rules.request(form(mode=EDIT, canvas_edit=write_canvas([(10, 10, 150, 90)], picture)))
    assert request.image == rules.uploads.path(picture) and request.width is None
    assert len(request.polygons) == 1 and not request.revise


def test_the_teacher_alone_has_its_own_steps(rules: RequestRules) -> None:
    alone = RequestRules(rules.uploads, False, 128)
    request = alone.request(form(teacher_steps=30, guidance=2.0))
    assert (request.num_inference_steps, request.guidance_scale, request.teacher) == (30, 2.0, False)


BAD = {
    "no quotes": ({"prompt": "a wall"}, ("prompt", "no_quotes")),
    "nothing in quotes": ({"prompt": 'a wall ""'}, ("prompt", "text_empty")),
    "open quote": ({"prompt": 'a "wall'}, ("prompt", "quote_open")),
    "place outside": ({"canvas_new": write_canvas([(100, 0, 140, 50)])}, ("places", "place_outside")),
    "broken canvas": ({"canvas_new": "nonsense"}, ("places", "canvas_broken")),
    "colour": ({"color1": "octarine"}, ("lines", "color_unknown")),
    "no picture": ({"mode": EDIT}, ("places", "edit_picture")),
    "picture gone": ({"mode": EDIT, "canvas_edit": write_canvas((), "0" * 24 + ".png")}, ("places", "upload_gone")),
    "no imitation": ({"font0": IMITATE}, ("imitation", "imitation_picture")),
    "no seed": ({"seed": None}, ("settings", "number_missing")),
    "half a picture": ({"count": 1.5}, ("settings", "number_whole")),
    "guidance": ({"guidance": 0.5}, ("settings", "guidance_low")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_beside_its_field(rules: RequestRules, case: str) -> None:
    fields, expected = BAD[case]
    assert fault(rules, **fields) == expected


def test_a_colour_of_a_row_without_a_text_does_not_matter(rules: RequestRules) -> None:
    assert not rules.request(form(color3="octarine")).colors
