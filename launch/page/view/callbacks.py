"""What happens on the page: each function takes values of components and returns those of others."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from launch.common.cli import one_line
from launch.page.canvas import after_upload, read_canvas
from launch.page.drawing import Checked, PageDrawing, Progress, Stopped
from launch.page.examples import Example, example_form
from launch.page.faults import FIELDS, Message, PageFault
from launch.page.form import EDIT, GENERATE, IMITATE, NAMES, default_form, fault_messages
from launch.page.lines import MOST_LINES, texts_of, with_text
from launch.page.render import empty_html, header_html, history_html, messages_html, progress_html, result_html
from launch.page.texts import choose_language
from launch.page.texts.english import ENGLISH
from launch.page.view.components import canvas_scene
from launch.page.view.layout import Page

UPLOADS_URL = "/uploads"
_CANVASES = {"canvas_new": "", "canvas_edit": "_edit", "canvas_imitation": "_imitation"}


@dataclass(frozen=True)
class Callbacks:
    """drawing: what draws. page: the components, for updates that depend on their number."""

    drawing: PageDrawing
    page: Page

    # --- language ---

    def first_language(self, chosen: str, request: gr.Request) -> str:
        """The language of the switch when the page opens: the last one chosen in this browser, else the browser's."""
        return chosen if chosen in ("en", "zh") else choose_language(request.headers.get("accept-language", ""))

    def speak(self, language: str, shown: str) -> list[Any]:
        """Header, all texts, result and history in a language."""
        return [
            header_html(self.drawing.facts, language, self.drawing.reads),
            *self.page.localized.updates(language),
            self._shown_html(shown, language),
            history_html(self.drawing.store.last(), language, shown),
        ]

    # --- prompt and rows ---

    def prompt_of_row(self, number: int) -> Any:
        return lambda prompt, text: with_text(prompt, number, text)

    # --- before drawing ---

    def check(self, language: str, *values: Any) -> list[Any]:
        """Messages, canvases, rows and texts for the form as it is: what would happen, said before it does."""
        form = dict(zip(NAMES, values, strict=True))
        return self._checked(language, form, self.drawing.check(form))

    def _checked(self, language: str, form: Mapping[str, Any], checked: Checked) -> list[Any]:
        is_new = not str(form["prompt"]).strip()  # nothing is wrong with an empty page
        messages = () if is_new and checked.request is None else checked.messages
        return [
            *self._message_htmls(language, form, messages, checked.request is None),
            *self._scenes(language, form, checked),
            *self._row_updates(form),
            gr.update(visible=any(form[f"font{n}"] == IMITATE for n in range(MOST_LINES))),
            json.dumps(_texts(form)),
        ]

    def _message_htmls(
        self, language: str, form: Mapping[str, Any], messages: tuple[Message, ...], is_error: bool
    ) -> list[str]:
        htmls = []
        canvases = {"places": "canvas_edit" if form["mode"] == EDIT else "canvas_new", "imitation": "canvas_imitation"}
        for name in FIELDS:
            own = [message for message in messages if message.field == name]
            fault = _upload_fault(name, form[canvases[name]]) if name in canvases else None
            htmls.append(messages_html([fault] if fault else own, language, is_error or fault is not None))
        return htmls

    def _scenes(self, language: str, form: Mapping[str, Any], checked: Checked) -> list[Any]:
        """Updates of the three canvases; the one of the other tab stays as it is."""
        updates, uploads = [], self.drawing.uploads
        texts = _texts(form) or []
        for name, kind in _CANVASES.items():
            if name == ("canvas_new" if form["mode"] == EDIT else "canvas_edit"):
                updates.append(gr.skip())
                continue
            url, size = "", (3, 2)
            try:
                picture = read_canvas(form[name]).picture
                if picture:
                    url, size = f"{UPLOADS_URL}/{uploads.path(picture).name}", uploads.size(picture)
            except PageFault:
                pass  # is said beside the field
            if not kind:
                size = (int(form["width"] or 128), int(form["height"] or 128))
            ghosts = [] if kind == "_imitation" else [line.polygon.tolist() for line in checked.lines]
            if not ghosts and kind != "_imitation" and checked.request is None:
                ghosts = self.drawing.shapes(form)
            own_texts = [] if kind == "_imitation" else texts
            updates.append(gr.update(scene=canvas_scene(language, kind, size, url, own_texts, ghosts)))
        return updates

    def _row_updates(self, form: Mapping[str, Any]) -> list[Any]:
        """One row more than there are texts."""
        texts = _texts(form)
        if texts is None:
            return [gr.skip()] * MOST_LINES
        return [gr.update(visible=n <= len(texts)) for n in range(MOST_LINES)]

    def take_upload(self, field: str, value: str) -> str:
        """The canvas after a picture or mask was sent. What is wrong with it is kept in the canvas's value."""
        try:
            upload = read_canvas(value).upload
            kind = "mask" if upload.get("kind") == "mask" else "picture"
            return after_upload(value, {kind: self.drawing.uploads.take(str(upload.get("path", "")), field)})
        except PageFault as error:
            return after_upload(value, {}, [error.message.key, *error.message.arguments])

    # --- drawing ---

    def begin(self, language: str, *values: Any) -> list[Any]:
        """The answer to the button: the messages, a card that waits, the buttons, and the form if it is to be drawn."""
        form = dict(zip(NAMES, values, strict=True))
        checked = self.drawing.check(form)
        messages = self._message_htmls(language, form, checked.messages, checked.request is None)
        if checked.request is None:
            return [*messages, gr.skip(), gr.skip(), gr.skip(), None]
        progress = Progress({spec.role: [0, spec.steps] for spec in self.drawing.pipeline.specs(checked.request)})
        return [*messages, progress_html(progress, language), gr.update(visible=False), gr.update(visible=True), form]

    def draw(self, language: str, shown: str, form: Mapping[str, Any] | None) -> Iterator[list[Any]]:
        """Draws what `begin` has found right, None: nothing.

        Yields result, message below it, history, name of the result, and the three buttons.
        """
        if form is None:
            yield [gr.skip()] * 7
            return
        fault: Message | None = None
        try:
            request = self.drawing.rules.request(form)
            for state in self.drawing.draw(form, request):
                if isinstance(state, Progress):
                    yield [progress_html(state, language), *[gr.skip()] * 6]
                else:
                    shown = state.name
        except Stopped:
            pass
        except ValueError as error:
            fault = fault_messages(error)[0]
        except OSError as error:
            fault = Message("result", "disk", (one_line(error),))
        except Exception as error:  # a page stays open whatever happens; the terminal has the rest
            traceback.print_exc()
            fault = Message("result", "failed", (one_line(error),))
        yield [
            self._shown_html(shown, language),
            messages_html([fault] if fault else [], language, True),
            history_html(self.drawing.store.last(), language, shown),
            shown,
            gr.update(visible=bool(shown)),
            gr.update(visible=True),
            gr.update(visible=False),
        ]

    def _shown_html(self, shown: str, language: str) -> str:
        result = self.drawing.store.get(shown) if shown else None
        return result_html(result, language) if result else empty_html(self.drawing.facts, language)

    # --- filling the form ---

    def open_result(self, language: str, event: gr.EventData) -> list[Any]:
        """Shows one of the last results again."""
        name = str(getattr(event, "name", ""))
        result = self.drawing.store.get(name)
        gone = [] if result else [Message("result", "gone")]
        return [
            self._shown_html(name, language),
            messages_html(gone, language, True),
            history_html(self.drawing.store.last(), language, name),
            name if result else "",
            gr.update(visible=result is not None),
        ]

    def fill_with_result(self, shown: str) -> list[Any]:
        """The form that the shown result was drawn from."""
        result = self.drawing.store.get(shown)
        return self._filled(result.form) if result else [gr.skip()] * self.filled_count

    def fill_with_example(self, example: Example) -> Any:
        def fill() -> list[Any]:
            return self._filled(example_form(example, self.default, self.drawing.uploads))

        return fill

    @property
    def default(self) -> dict[str, Any]:
        return default_form(self.drawing.facts.side, self.drawing.facts.steps)

    @property
    def filled_count(self) -> int:
        return len(NAMES) + 3

    def _filled(self, given: Mapping[str, Any]) -> list[Any]:
        """All fields, the open tab and the visible canvas. What a form lacks is as in a new one."""
        form = self.default | {name: value for name, value in given.items() if name in NAMES}
        return [*(form[name] for name in NAMES), *self.switch_tab(form["mode"])[1:]]

    def switch_tab(self, mode: str) -> list[Any]:
        """Mode, open tab, visible canvas of a new picture, visible canvas of a photograph."""
        return [mode, gr.update(selected=mode), gr.update(visible=mode == GENERATE), gr.update(visible=mode == EDIT)]


def _texts(form: Mapping[str, Any]) -> list[str] | None:
    """The texts of the form's prompt; None while a quote is open."""
    try:
        return texts_of(form["prompt"])
    except ValueError:
        return None


def _upload_fault(field: str, value: Any) -> Message | None:
    """What was wrong with the last upload into a canvas."""
    try:
        fault = read_canvas(value).fault
    except PageFault:
        return None
    if not fault or not str(fault[0]).startswith("upload_") or fault[0] not in ENGLISH:
        return None
    return Message(field, str(fault[0]), tuple(map(str, fault[1:])))
