"""Connects the components of the page with what happens: the whole page as one `gr.Blocks`."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from launch.page.drawing import PageDrawing
from launch.page.examples import EXAMPLES
from launch.page.form import EDIT, GENERATE, NAMES
from launch.page.view.callbacks import Callbacks
from launch.page.view.layout import Page, build_layout

MOST_WAITING = 8
"""Drawings that wait for their turn; one more is refused."""

_SECONDS = 24 * 3600  # what a browser sent and nobody kept is removed after a day
_STORED = "() => { try { return localStorage.getItem('anytext2-language') || ''; } catch (error) { return ''; } }"
_STORE = """(language) => {
  try { localStorage.setItem('anytext2-language', language); } catch (error) {}
  return [language];
}"""
# Gradio tells of a key that was pressed, not of what was pasted or comes from an input method.
_TELL_OF_INPUT = """() => document.addEventListener('input', (event) => {
  const isRow = event.target.closest?.('.line');
  if (isRow) event.target.dispatchEvent(new KeyboardEvent('keypress', { key: 'a', bubbles: true }));
}, true)"""
# The rows follow the prompt, but for the one that is being typed in.
_SYNC_ROWS = """(parsed, ...rows) => {
  const texts = JSON.parse(parsed || 'null');
  const isTyped = (n) => document.activeElement?.closest(`#text${n}`);
  return rows.map((row, n) => (texts === null || isTyped(n) ? row : texts[n] ?? ''));
}"""
_SHOW_LANGUAGE = """(language) => {
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
  document.body.classList.add('spoken');
}"""
_SCROLL = """() => {
  const fault = document.querySelector('.messages.error');
  const target = fault || (window.innerWidth < 900 ? document.getElementById('result') : null);
  if (target) target.scrollIntoView({ behavior: 'smooth', block: 'center' });
}"""


def build_page(drawing: PageDrawing) -> gr.Blocks:
    """The page of a model."""
    fonts = drawing.pipeline.prepare.fonts
    names = [font.path.stem for font in dict.fromkeys((fonts.default, *fonts.languages.get("Latin", ())))]
    with gr.Blocks(title="AnyText2", analytics_enabled=False, delete_cache=(3600, _SECONDS)) as blocks:
        page = build_layout(drawing.facts, names, drawing.reads, drawing.store.last())
        callbacks = Callbacks(drawing, page)
        checked = _wire_check(page, callbacks)
        _wire_language(blocks, page, callbacks, checked)
        _wire_prompt(page, callbacks)
        _wire_tabs_and_uploads(page, callbacks, checked)
        _wire_drawing(page, callbacks)
        _wire_filling(page, callbacks, checked)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=None, api_open=False)
    return blocks


_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def _wire_check(page: Page, callbacks: Callbacks) -> dict[str, Any]:
    """The check after each change. Returns its arguments, for events that end with one."""
    canvases = [page.fields[name] for name in ("canvas_new", "canvas_edit", "canvas_imitation")]
    check: dict[str, Any] = {
        "fn": callbacks.check,
        "inputs": [page.language, *page.form],
        "outputs": [*page.message_list, *canvases, *page.rows, page.imitation, page.parsed],
        **_QUIET,
    }
    changes = [component.change for name, component in page.fields.items() if name != "mode"]
    sync: dict[str, Any] = {"fn": None, "inputs": [page.parsed, *page.texts], "outputs": page.texts, "js": _SYNC_ROWS}
    gr.on(changes, trigger_mode="always_last", **check).then(**sync)
    gr.on([text.blur for text in page.texts], **sync)
    return check


def _wire_language(blocks: gr.Blocks, page: Page, callbacks: Callbacks, check: dict[str, Any]) -> None:
    chosen = gr.Textbox(visible=False)  # a gr.State is not filled by a browser
    spoken = [page.header, *page.localized.components, page.result, page.history]
    speak: dict[str, Any] = {"inputs": [page.language, page.shown], "outputs": spoken, **_QUIET}
    opened = blocks.load(callbacks.first_language, chosen, page.language, js=_STORED, **_QUIET)
    opened = opened.then(callbacks.speak, **speak).then(None, page.language, None, js=_SHOW_LANGUAGE)
    opened.then(**check).then(None, None, None, js=_TELL_OF_INPUT)
    switched = page.language.input(callbacks.speak, js=None, **speak)
    switched.then(None, page.language, None, js=_STORE).then(None, page.language, None, js=_SHOW_LANGUAGE).then(**check)


def _wire_prompt(page: Page, callbacks: Callbacks) -> None:
    prompt = page.fields["prompt"]
    for number, text in enumerate(page.texts):
        text.input(callbacks.prompt_of_row(number), [prompt, text], prompt, trigger_mode="always_last", **_QUIET)


def _wire_tabs_and_uploads(page: Page, callbacks: Callbacks, check: dict[str, Any]) -> None:
    outputs = [page.fields["mode"], page.tabs["all"], page.tabs["new_part"], page.tabs["edit_part"]]
    for mode in (GENERATE, EDIT):
        page.tabs[mode].select(partial(callbacks.switch_tab, mode), None, outputs, **_QUIET).then(**check)
    for name, field in (("canvas_new", "places"), ("canvas_edit", "places"), ("canvas_imitation", "imitation")):
        canvas = page.fields[name]
        canvas.sent(partial(callbacks.take_upload, field), canvas, canvas, **_QUIET)


def _wire_drawing(page: Page, callbacks: Callbacks) -> None:
    inputs, asked, message = [page.language, *page.form], gr.State(None), page.messages["result"]
    begun = page.draw.click(
        callbacks.begin, inputs, [*page.message_list, page.result, page.draw, page.stop, asked], **_QUIET
    ).then(None, None, None, js=_SCROLL)
    begun.then(
        callbacks.draw,
        [page.language, page.shown, asked],
        [page.result, message, page.history, page.shown, page.reuse, page.draw, page.stop],
        concurrency_limit=1,
        concurrency_id="drawing",
        show_progress="hidden",
        api_visibility="private",
    )
    page.stop.click(callbacks.drawing.stop, None, None, **_QUIET)


def _wire_filling(page: Page, callbacks: Callbacks, check: dict[str, Any]) -> None:
    filled = [
        *(page.fields[name] for name in NAMES),
        page.tabs["all"],
        page.tabs["new_part"],
        page.tabs["edit_part"],
    ]
    for example in EXAMPLES:
        page.examples[example.name].click(
            callbacks.fill_with_example(example), None, filled, trigger_mode="once", **_QUIET
        ).then(**check)
    page.reuse.click(callbacks.fill_with_result, page.shown, filled, **_QUIET).then(**check)
    shown = [page.result, page.messages["result"], page.history, page.shown, page.reuse]
    page.history.opened(callbacks.open_result, page.language, shown, **_QUIET)
