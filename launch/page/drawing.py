"""Draws what a form of the page asks for: checks it first, tells how far it is, and can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.inference.letter_size import CJK_SHARE
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.prompt_file import Judge, Prompt, PromptDrawing
from distill.inference.request import DrawingRequest
from distill.inference.result import PlacedLine
from launch.page.canvas import read_canvas
from launch.page.faults import Message
from launch.page.form import EDIT, Form, RequestRules, fault_messages
from launch.page.limits import Uploads
from launch.page.store import ResultStore, StoredResult
from launch.page.texts.messages import understand

STUDENT_STEPS = range(1, 9)
_LOOK_SECONDS = 0.2


class Stopped(Exception):
    """The user has stopped the drawing."""


@dataclass(frozen=True)
class Checked:
    """What is known of a form before it is drawn.

    request: None where it cannot be drawn. messages: why, or what a user should know. lines: what goes where.
    """

    request: DrawingRequest | None
    messages: tuple[Message, ...] = ()
    lines: tuple[PlacedLine, ...] = ()


@dataclass
class Progress:
    """How far a drawing is. rows: role, steps that are done, and steps in all, in the order of drawing."""

    rows: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFacts:
    """What the page says of its model. student: where it is from, '' for none. letter, cjk, side: in pixels."""

    student: str
    size: str
    steps: int
    good_steps: tuple[int, ...]
    side: int
    cells: int
    letter: int
    cjk: int


class PageDrawing:
    """pipeline: what draws. judge: reads the pictures; None: they are not read. folder: of the page's files."""

    def __init__(self, pipeline: AnyText2Pipeline, judge: Judge | None, folder: Path) -> None:
        (folder / "temporary").mkdir(parents=True, exist_ok=True)
        self.pipeline, self.reads = pipeline, judge is not None
        self.uploads = Uploads(folder / "uploads", folder / "temporary")
        self.store = ResultStore(folder / "results")
        model = pipeline.model
        self.rules = RequestRules(self.uploads, model.has_student, model.recipe.data.options.resolution)
        self._prepare = replace(pipeline.prepare, translate=None)  # a check is made at each key that is pressed
        self._drawing = PromptDrawing(pipeline, self.store.folder, judge, say=lambda line: None)
        self._pool = ThreadPoolExecutor(1, "drawing")  # one picture at a time, whoever asks
        self._stop = threading.Event()
        self.facts = model_facts(pipeline)

    def check(self, form: Form) -> Checked:
        """What can be said of a form without drawing it."""
        try:
            request = self.rules.request(form)
            self.pipeline.specs(request)
            prepared = self._prepare(request)
        except ValueError as error:
            return Checked(None, tuple(fault_messages(error)))
        messages = [message for warning in prepared.warnings for message in understand(warning)]
        if self.pipeline.prepare.translate is not None:
            messages = [message for message in messages if message.key != "not_english"]
        if form["mode"] == EDIT and not any(line.text.strip() for line in prepared.lines):
            messages = [m for m in messages if m.key != "no_quotes"] + [Message("prompt", "nothing_written")]
        return Checked(request, (*self._steps_note(request), *messages), prepared.lines)

    def shapes(self, form: Form) -> list[list[list[float]]]:
        """The polygons of a form's mask, also where the form cannot be drawn yet."""
        name = "canvas_edit" if form["mode"] == EDIT else "canvas_new"
        try:
            mask = read_canvas(form[name]).mask
            request = self.rules.request({**form, "prompt": '"A"'}) if mask else None
            return [] if request is None else [line.polygon.tolist() for line in self._prepare(request).lines]
        except ValueError:
            return []

    def draw(self, form: Form, request: DrawingRequest) -> Iterator[Progress | StoredResult]:
        """Draws a request, and yields how far it is and then the result. Closing the iterator stops the drawing.

        Raises Stopped after `stop`, ValueError for a request that cannot be drawn after all, OSError for a full disk.
        """
        name, stop = self.store.new_name(), threading.Event()
        self._stop = stop
        specs = self.pipeline.specs(request)
        progress = Progress({spec.role: [0, spec.steps] for spec in specs})

        def on_step(pipeline: AnyText2Pipeline, step: int, timestep: int, state: dict[str, Any]) -> None:
            if stop.is_set():
                raise Stopped
            progress.rows[state["spec"].role][0] = step + 1

        work = self._pool.submit(self._drawing.draw, Prompt(name, request), on_step)
        try:
            yield from self._watch(work, progress)
            result = self.store.add(name, work.result(), dict(form))
        except BaseException:
            stop.set()
            wait([work])
            self.store.discard(name)
            raise
        yield result

    def stop(self) -> None:
        """Ends the present drawing after its step."""
        self._stop.set()

    def _watch(self, work: Future[dict[str, Any]], progress: Progress) -> Iterator[Progress]:
        while not work.done():
            yield progress
            wait([work], _LOOK_SECONDS)

    def _steps_note(self, request: DrawingRequest) -> list[Message]:
        good = self.facts.good_steps
        steps = request.num_inference_steps
        if not self.facts.student or steps in good:
            return []
        return [Message("settings", "steps_unusual", (", ".join(map(str, good)), steps))]


def model_facts(pipeline: AnyText2Pipeline) -> ModelFacts:
    model, limits = pipeline.model, pipeline.prepare.limits
    student = model.recipe.student
    place = model.run_dir or model.checkpoint
    return ModelFacts(
        student="/".join(place.parts[-2:]) if model.has_student and place is not None else "",
        size="tiny" if model.recipe.model.config == "tiny" else "official",
        steps=min(model.default_steps, STUDENT_STEPS[-1]),
        good_steps=tuple(student.supported_steps(STUDENT_STEPS)),
        side=model.recipe.data.options.resolution,
        cells=pipeline.prepare.cells,
        letter=round(limits.letter),
        cjk=round(limits.letter * CJK_SHARE),
    )
