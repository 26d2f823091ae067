"""The layout of the page: on the left what is asked for, on the right what was drawn; one column on a phone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from launch.page.drawing import STUDENT_STEPS, ModelFacts
from launch.page.examples import EXAMPLES
from launch.page.faults import FIELDS
from launch.page.form import GENERATE, IMITATE, NAMES, SETTINGS
from launch.page.lines import MOST_LINES
from launch.page.render import empty_html, header_html, history_html
from launch.page.texts import NAMES as LANGUAGE_NAMES
from launch.page.texts import say
from launch.page.view.components import Localized, Text, canvas_scene, color_choices, place_canvas

_FONT_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|-")  # where a font file's name has a new word

FIRST_LANGUAGE = "en"  # until the browser's is known


@dataclass
class Page:
    """The parts of the page that the callbacks use. fields: by the names of `form.NAMES`; messages: by field.

    shown: name of the result that is shown. parsed: the texts of the prompt, as JSON.
    """

    localized: Localized
    language: Any = None
    header: Any = None
    tabs: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    texts: list[Any] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    messages: dict[str, Any] = field(default_factory=dict)
    imitation: Any = None
    examples: dict[str, Any] = field(default_factory=dict)
    draw: Any = None
    stop: Any = None
    result: Any = None
    history: Any = None
    reuse: Any = None
    shown: Any = None
    parsed: Any = None

    @property
    def form(self) -> list[Any]:
        """The components of a form, in the order of NAMES."""
        return [self.fields[name] for name in NAMES]

    @property
    def message_list(self) -> list[Any]:
        return [self.messages[name] for name in FIELDS]


def build_layout(facts: ModelFacts, fonts: list[str], reads: bool, history: Any) -> Page:
    """Makes the components inside of an open `gr.Blocks`. fonts: names to choose from. history: results there are."""
    page = Page(Localized(FIRST_LANGUAGE))
    with gr.Row(elem_id="top"):
        page.header = gr.HTML(header_html(facts, FIRST_LANGUAGE, reads), elem_id="header", apply_default_css=False)
        page.language = gr.Radio(
            [(name, key) for key, name in LANGUAGE_NAMES.items()],
            value=FIRST_LANGUAGE,
            show_label=False,
            container=False,
            elem_id="language",
            scale=0,
            min_width=150,
        )
    with gr.Row(elem_id="columns", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_id="form"):
            _add_tabs(page)
            _add_prompt(page)
            _add_places(page, facts)
            _add_lines(page, fonts)
            _add_steps(page, facts)
            _add_settings(page, facts)
        with gr.Column(scale=6, min_width=320, elem_id="output"):
            _add_output(page, facts, history)
    return page


def _message(page: Page, name: str) -> None:
    page.messages[name] = gr.HTML("", elem_id=f"message-{name}", elem_classes=["message"], apply_default_css=False)


def _add_tabs(page: Page) -> None:
    add = page.localized
    page.fields["mode"] = gr.State(GENERATE)
    with gr.Tabs(elem_id="tabs") as page.tabs["all"]:
        for mode in ("generate", "edit"):
            page.tabs[mode] = add(gr.Tab, texts={"label": f"tab_{mode}"}, id=mode, elem_id=f"tab-{mode}")
            with page.tabs[mode], gr.Row(elem_classes=["examples"]):
                add(_word, texts={"value": lambda lang: f"<span>{say(lang, 'examples')}</span>"})
                for example in (example for example in EXAMPLES if example.mode == mode):
                    texts = {"value": f"example_{example.name}"}
                    page.examples[example.name] = add(
                        gr.Button, texts=texts, size="sm", scale=0, min_width=40, elem_id=f"try-{example.name}"
                    )


def _word(value: str) -> Any:
    return gr.HTML(value, elem_classes=["word"], apply_default_css=False)


def _add_prompt(page: Page) -> None:
    texts = {"label": "prompt", "info": "prompt_info", "placeholder": "prompt_placeholder"}
    page.fields["prompt"] = page.localized(
        gr.Textbox, texts=texts, lines=2, max_lines=4, elem_id="prompt", max_length=4000, autofocus=True
    )
    _message(page, "prompt")


def _add_places(page: Page, facts: ModelFacts) -> None:
    size = (facts.side, facts.side)
    page.localized(_heading, texts={"value": lambda lang: say(lang, "places")})
    with gr.Column(elem_id="new-part") as page.tabs["new_part"]:
        page.fields["canvas_new"] = place_canvas("canvas-new", canvas_scene(FIRST_LANGUAGE, "", size))
    with gr.Column(visible=False, elem_id="edit-part") as page.tabs["edit_part"]:
        page.fields["canvas_edit"] = place_canvas("canvas-edit", canvas_scene(FIRST_LANGUAGE, "_edit", (3, 2)))
    _message(page, "places")


def _heading(value: str) -> Any:
    return gr.HTML(value, html_template="<h2>${value}</h2>", elem_classes=["heading"], apply_default_css=False)


def _add_lines(page: Page, fonts: list[str]) -> None:
    page.localized(_heading, texts={"value": lambda lang: say(lang, "lines")})
    for number in range(MOST_LINES):
        with gr.Row(visible=number == 0, elem_classes=["line", f"line-{number + 1}"], elem_id=f"line{number}") as row:
            _add_line(page, number, fonts)
        page.rows.append(row)
    _message(page, "lines")
    with gr.Column(visible=False, elem_id="imitation") as page.imitation:
        page.localized(_heading, texts={"value": lambda lang: say(lang, "imitation")})
        page.fields["canvas_imitation"] = place_canvas(
            "canvas-imitation", canvas_scene(FIRST_LANGUAGE, "_imitation", (3, 2))
        )
    _message(page, "imitation")


def _add_line(page: Page, number: int, fonts: list[str]) -> None:
    """Text, font and colour of one row."""
    hidden: dict[str, Any] = {"show_label": False, "container": False, "min_width": 80}
    texts: dict[str, Text] = {"placeholder": "text_more", "label": lambda lang: say(lang, "text", number + 1)}
    page.texts.append(page.localized(gr.Textbox, texts=texts, scale=5, max_lines=1, elem_id=f"text{number}", **hidden))

    def font_choices(language: str) -> list[tuple[str, str]]:
        own = [(_FONT_WORDS.sub(" ", name), name) for name in fonts]
        return [(say(language, "font_none"), ""), *own, (say(language, "font_imitate"), IMITATE)]

    choices: dict[str, tuple[Text, dict[str, bool]]] = {
        "font": (font_choices, {"filterable": False}),
        "color": (color_choices, {"allow_custom_value": True}),
    }
    for name, (offered, options) in choices.items():
        page.fields[f"{name}{number}"] = page.localized(
            gr.Dropdown,
            texts={"choices": offered, "label": name},
            value="",
            scale=4,
            elem_id=f"{name}{number}",
            **options,
            **hidden,
        )


def _add_steps(page: Page, facts: ModelFacts) -> None:
    add, has_student = page.localized, bool(facts.student)
    with gr.Row(elem_id="action"):
        page.fields["steps"] = add(
            gr.Slider,
            STUDENT_STEPS[0],
            STUDENT_STEPS[-1],
            texts={"label": "steps_student"},
            value=facts.steps,
            step=1,
            visible=has_student,
            elem_id="steps",
            min_width=180,
            scale=3,
        )
        if not has_student:
            _add_teacher_steps(page)
        page.draw = add(
            gr.Button, texts={"value": "draw"}, variant="primary", size="lg", elem_id="draw", min_width=120, scale=2
        )
        page.stop = add(
            gr.Button, texts={"value": "stop"}, visible=False, size="lg", elem_id="stop", min_width=120, scale=2
        )
    page.fields["teacher"] = add(
        gr.Checkbox, texts={"label": "teacher_on"}, value=True, visible=has_student, container=False, elem_id="teacher"
    )


def _add_teacher_steps(page: Page) -> None:
    page.fields["teacher_steps"] = page.localized(
        gr.Slider,
        1,
        100,
        texts={"label": "steps_teacher"},
        value=SETTINGS["teacher_steps"],
        step=1,
        elem_id="teacher-steps",
        min_width=180,
        scale=3,
    )


def _add_settings(page: Page, facts: ModelFacts) -> None:
    add, sides = page.localized, _sides(facts)
    with add(gr.Accordion, texts={"label": "settings"}, open=False, elem_id="settings"):
        with gr.Row():
            _number(page, "seed", precision=0, minimum=0)
            _slider(page, "count", 1, 4, 1)
        with gr.Row():
            _slider(page, "width", *sides, value=facts.side)
            _slider(page, "height", *sides, value=facts.side)
        with gr.Row():
            _slider(page, "strength", 0, 2, 0.05)
            _slider(page, "attnx_scale", 0, 2, 0.05)
        with gr.Row():
            if facts.student:
                _add_teacher_steps(page)
            _slider(page, "guidance", 0, 15, 0.5)
        page.fields["negative_prompt"] = add(
            gr.Textbox, texts={"label": "negative_prompt"}, max_lines=2, max_length=1000, elem_id="negative_prompt"
        )
        with gr.Row():
            page.fields["order"] = add(
                gr.Radio,
                texts={
                    "label": "order",
                    "choices": lambda lang: [(say(lang, f"order_{o}"), o) for o in ("top-down", "left-right")],
                },
                value=SETTINGS["order"],
                elem_id="order",
            )
            page.fields["revise"] = add(
                gr.Checkbox, texts={"label": "revise"}, value=SETTINGS["revise"], elem_id="revise"
            )
    _message(page, "settings")


def _slider(page: Page, name: str, low: float, high: float, step: float, value: Any = None) -> None:
    page.fields[name] = page.localized(
        gr.Slider,
        low,
        high,
        texts={"label": name},
        value=SETTINGS[name] if value is None else value,
        step=step,
        elem_id=name,
        min_width=140,
    )


def _number(page: Page, name: str, **options: Any) -> None:
    page.fields[name] = page.localized(
        gr.Number, texts={"label": name}, value=SETTINGS[name], elem_id=name, min_width=140, **options
    )


def _sides(facts: ModelFacts) -> tuple[int, int, int]:
    """Least, greatest and step of the picture's sides."""
    step = facts.cells if facts.size == "tiny" else 64
    return max(64, facts.side // 2), 2 * facts.side, step


def _add_output(page: Page, facts: ModelFacts, history: Any) -> None:
    add = page.localized
    page.shown, page.parsed = gr.State(""), gr.Textbox("[]", visible="hidden")
    page.result = gr.HTML(empty_html(facts, FIRST_LANGUAGE), elem_id="result", apply_default_css=False)
    _message(page, "result")
    page.reuse = add(gr.Button, texts={"value": "reuse"}, size="sm", visible=False, elem_id="reuse")
    add(_heading, texts={"value": lambda lang: say(lang, "history")})
    page.history = gr.HTML(
        history_html(history, FIRST_LANGUAGE),
        elem_id="history",
        apply_default_css=False,
        js_on_load="element.addEventListener('click', (event) => {"
        " const past = event.target.closest('.past'); if (past) trigger('opened', {name: past.dataset.name}); });",
    )
