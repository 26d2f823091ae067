"""The components of the page, with the texts that change with the language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from anytext2.core.resources import resource
from launch.page.limits import UPLOAD_BYTES
from launch.page.lines import MOST_LINES
from launch.page.texts import say

Text = str | Callable[[str], Any]
"""A key of the texts, or what gives a property for a language."""

COLORS = ("white", "black", "red", "orange", "yellow", "green", "blue", "purple")


def asset(name: str) -> str:
    """A file of the page that browsers read."""
    return resource(f"launch/page/assets/{name}").read_text(encoding="utf-8")


class Localized:
    """Makes components and remembers which of their properties are texts."""

    def __init__(self, language: str) -> None:
        self._first = language
        self._parts: list[tuple[Any, Mapping[str, Text]]] = []

    def __call__(self, kind: Callable[..., Any], *args: Any, texts: Mapping[str, Text], **options: Any) -> Any:
        """A component of a kind; texts: its properties that change with the language."""
        component = kind(*args, **options, **self._said(texts, self._first))
        self._parts.append((component, texts))
        return component

    @property
    def components(self) -> list[Any]:
        return [component for component, _ in self._parts]

    def updates(self, language: str) -> list[Any]:
        """What shows `components` in a language."""
        return [gr.update(**self._said(texts, language)) for _, texts in self._parts]

    def _said(self, texts: Mapping[str, Text], language: str) -> dict[str, Any]:
        return {name: say(language, text) if isinstance(text, str) else text(language) for name, text in texts.items()}


def place_canvas(elem_id: str, scene: Mapping[str, Any]) -> Any:
    """The canvas of places of assets/canvas.js; launch/page/canvas.py reads its value."""
    return gr.HTML(
        "",
        html_template=asset("canvas.html"),
        js_on_load=asset("canvas.js"),
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=["place-canvas"],
        scene=dict(scene),
    )


def canvas_words(language: str, kind: str) -> dict[str, str]:
    """What the canvas itself says. kind: '' of a new picture, `_edit`, `_imitation`."""
    names = ("drawn", "masked", "clear", "remove", "mask", "unmask", "pick", "drop", "sending")
    return {name: say(language, f"canvas_{name}") for name in names} | {"empty": say(language, f"canvas_empty{kind}")}


def canvas_scene(
    language: str,
    kind: str,
    size: tuple[int, int],
    url: str = "",
    texts: list[str] | None = None,
    ghosts: list[Any] | None = None,
) -> dict[str, Any]:
    """What a canvas shows. size: (width, height) of the picture. url: of the picture below. ghosts: where texts go."""
    return {
        "size": list(size),
        "url": url,
        "texts": texts or [],
        "ghosts": ghosts or [],
        "words": canvas_words(language, kind),
        "most": 1 if kind == "_imitation" else MOST_LINES,
        "picks": kind != "",
        "masks": kind != "_imitation",
        "bytes": UPLOAD_BYTES,
    }


def color_choices(language: str) -> list[tuple[str, str]]:
    return [(say(language, "color_none"), ""), *((say(language, f"color_{name}"), name) for name in COLORS)]


def page_theme() -> Any:
    """System fonts and calm colours; nothing of it is loaded from elsewhere."""
    fonts = ("system-ui", "Segoe UI", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei", "sans-serif")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=fonts,
        font_mono=("ui-monospace", "monospace"),
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
    ).set(
        body_background_fill="#f6f5f2",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_border_width="0px",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        input_border_width="1px",
        input_shadow="none",
        input_background_fill="white",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
    )
