"""The page's drawing without a browser: on the tiny model with an adapter of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.loading import load_sampling_model
from distill.inference.model import make_model
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.prompt_file import read_metadata
from launch.common.prompt_drawing import make_judge
from launch.page.canvas import write_canvas
from launch.page.drawing import PageDrawing, Progress, Stopped
from launch.page.form import default_form
from launch.page.render import empty_html, header_html, history_html, progress_html, result_html
from launch.page.store import StoredResult
from tests.helpers.stored_run import write_run

FIELDS = {
    "prompt": 'a red wall that reads "GO<b>"',
    "canvas_new": write_canvas([(4, 16, 60, 48)]),
    "steps": 2,
    "teacher_steps": 2,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> AnyText2Pipeline:
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe(DEFAULT_RECIPE, ["data.options.resolution=64", f"run_root={folder}", "name=run"])
    torch.manual_seed(0)
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    return AnyText2Pipeline(load_sampling_model(folder / "run", None))


@pytest.fixture
def drawing(pipeline: AnyText2Pipeline, tmp_path: Path) -> PageDrawing:
    return PageDrawing(pipeline, make_judge("own", pipeline.model), tmp_path)


def form(drawing: PageDrawing, **fields: Any) -> dict[str, Any]:
    return {**default_form(drawing.facts.side, drawing.facts.steps), **FIELDS, **fields}


@pytest.mark.heavy
def test_a_form_is_checked_drawn_and_kept(drawing: PageDrawing) -> None:
    asked = form(drawing)
    checked = drawing.check(asked)
    assert [line.text for line in checked.lines] == ["GO<b>"]
    assert {message.key for message in checked.messages} == {"letters_small"}
    assert checked.request is not None
    *before, result = drawing.draw(asked, checked.request)
    assert before and all(isinstance(state, Progress) for state in before)
    assert isinstance(result, StoredResult)
    pictures = result.entry["pictures"]
    assert [(p["role"], p["steps"], p["unet_calls"]) for p in pictures] == [("teacher", 2, 4), ("student", 2, 2)]
    assert all(line["text"] == "GO<b>" and "read" in line for p in pictures for line in p["ocr"])
    metadata = read_metadata(drawing.store.folder / pictures[0]["file"])
    assert metadata["settings"]["prompt"] == FIELDS["prompt"] and metadata["settings"]["seed"] == 1
    assert drawing.store.last()[0].form == json.loads(json.dumps(asked))
    for language in ("en", "zh"):  # what a user wrote is text, not HTML
        html = result_html(result, language) + history_html([result], language, result.name)
        assert "GO&lt;b&gt;" in html and "<b>" in html and "GO<b>" not in html
        assert html.count("<img") == 3 and html.count(" download=") == 2


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["stop", "close"])
def test_a_stopped_drawing_leaves_nothing_and_the_next_one_is_drawn(drawing: PageDrawing, end: str) -> None:
    asked = form(drawing, teacher_steps=100)
    request = drawing.check(asked).request
    assert request is not None
    states = drawing.draw(asked, request)
    next(states)
    if end == "stop":
        drawing.stop()
        with pytest.raises(Stopped):
            list(states)
    else:
        states.close()  # type: ignore[attr-defined]
    assert list(drawing.store.folder.iterdir()) == []
    quick = form(drawing, teacher=False, steps=1)
    again = drawing.check(quick).request
    assert again is not None and isinstance(list(drawing.draw(quick, again))[-1], StoredResult)


def test_steps_that_the_student_is_not_for_are_said(drawing: PageDrawing) -> None:
    keys: Callable[[int], set[str]] = lambda steps: {m.key for m in drawing.check(form(drawing, steps=steps)).messages}  # noqa: E731
    assert "steps_unusual" in keys(3) and "steps_unusual" not in keys(4)


def test_bad_input_is_known_before_drawing(drawing: PageDrawing) -> None:
    checked = drawing.check(form(drawing, prompt='"A" "B"'))
    assert checked.request is None
    assert [(m.field, m.key, m.arguments) for m in checked.messages] == [("places", "places_few", ("1", "2"))]


def test_progress_and_the_empty_page_are_shown_in_both_languages(drawing: PageDrawing) -> None:
    progress = Progress({"teacher": [7, 20], "student": [0, 4]})
    assert "step 7 of 20" in progress_html(progress, "en") and "第 7 / 20 步" in progress_html(progress, "zh")
    assert "Teacher" in empty_html(drawing.facts, "en") and "教师" in empty_html(drawing.facts, "zh")
    assert "64 px and writes letters from 40 px (Chinese from 30 px)" in header_html(drawing.facts, "en", True)
