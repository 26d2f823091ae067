"""Free prompts: which pictures are scored, what the scores are made of, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from distill.diffusion.sampling import SamplingSpec
from distill.evaluation.prompts.evaluate import evaluate_prompts
from distill.evaluation.prompts.scores import format_rows
from distill.inference.prompt_file import Prompt
from distill.inference.request import DrawingRequest
from distill.inference.result import DrawingResult, DrawnRow, PlacedLine

SPECS = (SamplingSpec("teacher", "ddim", 20, 2.0), SamplingSpec("student", "phased", 4))
BOX = np.float32([(0, 0), (9, 0), (9, 9), (0, 9)])


class FakePipeline:
    """Draws the texts of a prompt, which are its words, as grey pictures: the teacher 10, the student 20."""

    def draw(
        self, request: DrawingRequest, on_warning: Callable[[str], None], specs: Sequence[SamplingSpec]
    ) -> DrawingResult:
        if "!" in request.prompt:
            raise ValueError("layout: too wide")
        if request.strength != 1.0:
            on_warning("weak")
        assert not request.teacher and all(spec.strength == request.strength for spec in specs)
        words = request.prompt.split() or [" "]
        lines = tuple(PlacedLine(w, BOX, "Chinese" if w > "\u2e80" else "Latin", None) for w in words)
        grey = [Image.new("RGB", (10, 10), (10 * n,) * 3) for n in (1, 2)]
        rows = [
            DrawnRow(spec, (image,) * request.num_images_per_prompt, 0.5 * n, 40 // n)
            for n, (spec, image) in enumerate(zip(specs, grey, strict=True), 1)
        ]
        return DrawingResult(request.prompt, lines, tuple(rows), ())

    def prepare(self, request: DrawingRequest) -> object:
        sample = SimpleNamespace(position=torch.ones(1, 10, 10), glyph=torch.zeros(1, 10, 10))
        return SimpleNamespace(editing=None, sample=sample)


class FakeEngine:
    """Reads a picture's lines as it was told for its grey value."""

    name = "fake"

    def __init__(self, read: dict[int, list[str]]) -> None:
        self._read = {grey: iter(texts) for grey, texts in read.items()}

    def recognize_lines(self, image: np.ndarray, polygons: Sequence[np.ndarray]) -> list[str]:
        return [next(self._read[int(image[0, 0, 0])]) for _ in polygons]

    def in_charset(self, text: str) -> bool:
        return True


def prompts(*requests: DrawingRequest) -> list[Prompt]:
    return [Prompt(f"prompt{number}", request) for number, request in enumerate(requests, 1)]


def test_lines_are_scored_by_script_and_number_of_lines():
    given = prompts(
        DrawingRequest(prompt="OPEN 你好", strength=0.5),
        DrawingRequest(prompt="TOO LONG!"),
        DrawingRequest(prompt=""),
        DrawingRequest(prompt="Stop", num_images_per_prompt=2),
    )
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    engine = FakeEngine({10: ["OPEN", "你好", "Stop", "Stop"], 20: ["OPEN", "你女", "Stqp", "S top"]})
    progress = lambda done, total: steps.append((done, total))  # noqa: E731
    found = evaluate_prompts(FakePipeline(), given, SPECS, {"one": engine}, 2, 100, 0, progress, said.append)  # type: ignore[arg-type]
    assert said == ["prompt1: weak", "prompt2: layout: too wide"] and steps == [(4, 4)]
    assert found.refused == {"prompt2": "layout: too wide"}
    teacher, student = (row.to_json() for row in found.rows)
    assert (teacher["key"], teacher["nfe"], teacher["seconds_per_image"]) == ("teacher-ddim-20", 40, 0.5)
    assert teacher["pictures"] == 3 and teacher["read_by"]["one"]["exact_match"] == 1.0
    read = student["read_by"]["one"]
    assert (read["lines"], read["exact_match"], read["ned"]) == (4, 0.5, (1 + 0.5 + 0.75 + 1) / 4)
    assert {name: (group["lines"], group["exact_match"]) for name, group in read["groups"].items()} == {
        "Chinese": (1, 0.0),
        "Latin": (3, pytest.approx(2 / 3)),
        "1 line": (2, 0.5),
        "2 lines": (2, 0.5),
    }
    assert read["exact_match_95"][0] <= 0.5 <= read["exact_match_95"][1]
    assert found.lines[1] == {
        "name": "prompt4",
        "image": 0,
        "prompt": "Stop",
        "lines": [{"text": "Stop", "read": {"teacher-ddim-20": {"one": "Stop"}, "student-phased-4": {"one": "Stqp"}}}],
    }
    assert [example.name for example in found.examples] == ["prompt1", "prompt4-0"]
    assert found.examples[0].recognized["student-phased-4"] == ("OPEN", "你女")
    assert found.metrics()["student-phased-4/one/exact_match"] == 0.5
    json.dumps(found.to_json(), allow_nan=False)


def test_each_engine_has_a_table():
    engines = {name: FakeEngine({10: ["A"], 20: [read]}) for name, read in (("one", "A"), ("two", "B"))}
    rows = evaluate_prompts(FakePipeline(), prompts(DrawingRequest(prompt="A")), SPECS, engines).rows  # type: ignore[arg-type]
    one, two = format_rows(rows).split("\n\n")
    assert one.startswith("read by one:\nrow ") and "exact, 1 lines (95 %)" in one and "Latin (1)" in one
    assert one.splitlines()[-1].split()[:5] == ["student", "4", "none", "20", "1.000"]
    assert " 1.000 (1.000-1.000)" in one.splitlines()[-1] and " 0.000 (0.000-0.000)" in two.splitlines()[-1]


def test_nothing_to_score_is_one_line():
    given = prompts(DrawingRequest(prompt="TOO LONG!"), DrawingRequest(prompt=""))
    with pytest.raises(ValueError, match="^none of 2 prompts has words that were drawn and can be read$"):
        evaluate_prompts(FakePipeline(), given, SPECS, {"one": FakeEngine({})}, say=lambda line: None)  # type: ignore[arg-type]
