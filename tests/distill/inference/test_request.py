"""Requests from keyword arguments and from JSON, and what is said of mistakes in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.inference.request import (
    DrawingRequest,
    Imitation,
    parse_color,
    parse_font,
    request_from_json,
    requests_of,
)

HERE = Path("folder")


@pytest.mark.parametrize(
    ("given", "color"),
    [("red", (255, 0, 0)), ("#0080ff", (0, 128, 255)), ([1, 2, 3], (1, 2, 3)), ((0, 0, 0), (0, 0, 0)), (None, None)],
)
def test_colors(given, color):
    assert parse_color(given) == color


@pytest.mark.parametrize("given", ["reddish", "#12345", [1, 2], [1, 2, 300], 7, [0.5, 0, 0]])
def test_what_is_no_color_is_refused(given):
    with pytest.raises(ValueError, match="colour .*: write a name as in red"):
        parse_color(given)


def test_fonts_of_a_command_line():
    assert parse_font("Lobster") == "Lobster" and parse_font("") is None
    assert parse_font("a@b.jpg@1,2,30,40") == Imitation("a@b.jpg", [1.0, 2.0, 30.0, 40.0])
    assert parse_font("a.jpg@") == Imitation("a.jpg", None)
    with pytest.raises(ValueError, match="FILE@left,top,right,bottom"):
        parse_font("a.jpg@left")


def test_a_json_object_has_the_names_of_the_keyword_arguments():
    item = {"prompt": "a", "steps": 2, "boxes": [[1, 2, 3, 4]], "image": "b.png", "fonts": [None, {"image": "c.png"}]}
    request = request_from_json(item, "line 1", {"seed": 4, "colors": ["red"]}, HERE)
    assert (request.num_inference_steps, request.seed, request.colors) == (2, 4, ["red"])
    assert request.image == HERE / "b.png" and request.fonts == [None, Imitation(HERE / "c.png")]
    assert request_from_json("just words", "line 2", {}, HERE) == DrawingRequest(prompt="just words", fonts=[])


def test_only_what_is_set_is_written_down():
    assert DrawingRequest(prompt="a", fonts=[], colors=()).to_json() == {"prompt": "a"}
    request = DrawingRequest(prompt="a", seed=3, image=np.zeros((2, 2, 3), np.uint8), fonts=[Imitation(Path("b"))])
    assert request.to_json() == {
        "prompt": "a",
        "seed": 3,
        "image": "(a picture in memory)",
        "fonts": [{"image": "b"}],
    }


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([1], r"line 1: expected an object with a prompt, got \[1\]"),
        ({"seed": 1}, "line 1: prompt: missing"),
        ({"prompt": "a", "sed": 1}, "line 1: sed: no such field; seed is one"),
        ({"prompt": "a", "places": []}, "line 1: places: no such field"),
        ({"prompt": 3}, "line 1: prompt: 3 is not a text"),
        ({"prompt": "a", "steps": 0}, "line 1: num_inference_steps: 0 must be a whole number from 1 to 999"),
        ({"prompt": "a", "steps": 2.5}, "num_inference_steps: 2.5 must be a whole number"),
        ({"prompt": "a", "seed": None}, "seed: None must be a whole number from 0"),
        ({"prompt": "a", "count": 1000}, "num_images_per_prompt: 1000"),
        ({"prompt": "a", "boxes": "1,2,3,4"}, "boxes: '1,2,3,4' is not a list"),
        ({"prompt": "a", "colors": ["rod"]}, "line 1: colour 'rod'"),
        ({"prompt": "a", "image": "b.png", "width": 128}, "an edited picture keeps its size"),
        ({"prompt": "a", "order": "down"}, "order: 'down': one of top-down, left-right"),
        ({"prompt": "a", "fonts": [{"picture": "a"}]}, "an imitation has an image"),
        ({"prompt": "a", "strength": "high"}, "strength: 'high' is not a number"),
    ],
)
def test_mistakes_are_said_in_one_line(item, message):
    with pytest.raises(ValueError, match=message) as error:
        request_from_json(item, "line 1", {}, HERE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": "high"}, "strength: expected a number, got 'high'"),
        ({"guidance_scale": "x"}, "guidance_scale: expected a number, got 'x'"),
        ({"negative_prompt": 3}, "negative_prompt: expected a text, got 3"),
        ({"revise": "yes"}, "revise: expected true or false, got 'yes'"),
        ({"colors": "red"}, "colors: expected a list with one entry for each line, got 'red'"),
        ({"boxes": 5}, "boxes: expected a list with one entry for each line, got 5"),
        ({"fonts": [3]}, "fonts: 3 is no name of a font, font file or imitation"),
        ({"places": [(1, 2, 3, 4)]}, r"places: \(1, 2, 3, 4\) is no Place"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 must be a whole number from 1 to 999"),
    ],
)
def test_values_of_a_wrong_kind_are_said_in_one_line(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DrawingRequest(prompt="a", **settings)


def test_settings_of_a_list_of_prompts():
    settings = {"negative_prompt": ["x", "y"], "seed": [1, 2, 3, 4], "num_images_per_prompt": 2, "colors": ["red"]}
    requests = requests_of(["a", "b"], settings)
    assert [(r.prompt, r.negative_prompt, r.seed, r.num_images_per_prompt) for r in requests] == [
        ("a", "x", 1, 1),
        ("a", "x", 2, 1),
        ("b", "y", 3, 1),
        ("b", "y", 4, 1),
    ]
    assert all(request.colors == ["red"] for request in requests)
    assert [r.num_images_per_prompt for r in requests_of(("a", "b"), {**settings, "seed": [1, 2]})] == [2, 2]
    assert requests_of("a", {"seed": 1}) == [DrawingRequest(prompt="a", seed=1)]


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "prompt: an empty list"),
        (["a", 3], {}, "prompt 2: prompt: expected a text, got 3"),
        (["a", "b"], {"seed": [1, 2, 3]}, "seed: 3 for 2 prompts; give one for each, or one for all"),
        (["a", "b"], {"image": ["c.png"]}, "image: 1 for 2 prompts"),
        (["a", "b"], {"seed": [1, -2]}, "prompt 2: seed: -2 must be a whole number"),
        ("a", {"seed": [1, 2]}, r"seed: a list goes with a list of prompts, as in \[prompt\]"),
        (3, {}, "prompt: expected a text, got 3"),
    ],
)
def test_a_wrong_list_is_said_in_one_line(prompt, settings, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        requests_of(prompt, settings)
    assert "\n" not in str(error.value)
