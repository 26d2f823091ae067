"""The parts of the page that are plain HTML: messages, progress, results and the last ten. All texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from launch.page.drawing import ModelFacts, Progress
from launch.page.faults import Message
from launch.page.store import StoredResult
from launch.page.texts import say, say_message

RESULTS_URL = "/results"
ROLES = ("student", "teacher")  # from left to right


def messages_html(messages: Sequence[Message], language: str, is_error: bool) -> str:
    """The lines below a field; '' for none. is_error: nothing can be drawn as it is."""
    if not messages:
        return ""
    kind, mark = ("error", "!") if is_error else ("note", "i")
    lines = "".join(f"<li>{escape(say_message(language, message))}</li>" for message in messages)
    return f'<ul class="messages {kind}" data-mark="{mark}" role="{"alert" if is_error else "status"}">{lines}</ul>'


def header_html(facts: ModelFacts, language: str, reads: bool) -> str:
    """Title, the model that is loaded, and in one line what it can write."""
    who = say(language, "with_student", facts.student) if facts.student else say(language, "teacher_alone")
    can = say(language, f"can_{facts.size}", facts.side, facts.letter, facts.cjk)
    ocr = "" if reads else f'<p class="fact">{escape(say(language, "no_ocr"))}</p>'
    return (
        f'<div class="head" lang="{language}"><h1>{escape(say(language, "title"))}</h1>'
        f'<p class="fact">{escape(who)}</p><p class="fact can">{escape(can)}</p>{ocr}</div>'
    )


def empty_html(facts: ModelFacts, language: str) -> str:
    """What stands in the place of a result before there is one."""
    roles = [role for role in ROLES if role == "teacher" or facts.student]
    cards = "".join(
        f'<figure class="card"><figcaption><b>{escape(say(language, role))}</b></figcaption>'
        f'<div class="blank"><span>{escape(say(language, f"empty_{role}"))}</span></div></figure>'
        for role in roles
    )
    return f'<div class="cards n{len(roles)}">{cards}</div>'


def progress_html(progress: Progress, language: str) -> str:
    """A card for each way of sampling, with a bar."""
    cards = []
    for role in sorted(progress.rows, key=ROLES.index):
        done, steps = progress.rows[role]
        text = say(language, "progress", done, steps) if done else say(language, "waiting")
        if done == steps:
            text = say(language, "reading")
        cards.append(
            f'<figure class="card busy"><figcaption><b>{escape(say(language, role))}</b></figcaption>'
            f'<div class="blank"><span>{escape(text)}</span>'
            f'<progress max="{steps}" value="{done}" aria-label="{escape(text)}"></progress></div></figure>'
        )
    return f'<div class="cards n{len(cards)}" aria-busy="true">{"".join(cards)}</div>'


def result_html(result: StoredResult, language: str) -> str:
    """Student and teacher side by side: pictures, costs, and what was read in each line."""
    pictures = result.entry["pictures"]
    roles = [role for role in ROLES if any(picture["role"] == role for picture in pictures)]
    cards = [_card(role, [p for p in pictures if p["role"] == role], language) for role in roles]
    return f'<div class="cards n{len(cards)}" data-result="{escape(result.name)}">{"".join(cards)}</div>'


def history_html(results: Sequence[StoredResult], language: str, shown: str = "") -> str:
    """The last results as small pictures to open again."""
    if not results:
        return f'<p class="fact">{escape(say(language, "history_empty"))}</p>'
    items = []
    for result in results:
        picture = next((p for p in result.entry["pictures"] if p["role"] == "student"), result.entry["pictures"][0])
        words = " · ".join(line["text"] for line in result.entry["lines"] if line["text"].strip()) or "–"
        current = ' aria-current="true"' if result.name == shown else ""
        items.append(
            f'<button type="button" class="past" data-name="{escape(result.name)}" title="{escape(words)}"{current}>'
            f'<img src="{_url(picture)}" alt="{escape(words)}" loading="lazy"><span>{escape(words)}</span></button>'
        )
    return f'<div class="history">{"".join(items)}</div>'


def _card(role: str, pictures: Sequence[dict[str, Any]], language: str) -> str:
    first = pictures[0]
    seconds = f"{first['seconds']:.2f}" if first["seconds"] < 10 else f"{first['seconds']:.0f}"
    facts = "".join(
        f'<span><b class="{name}">{value}</b> {escape(say(language, name))}</span>'
        for name, value in (("steps", first["steps"]), ("seconds", seconds), ("unet_calls", first["unet_calls"]))
    )
    shown = "".join(_picture(picture, language) for picture in pictures)
    return (
        f'<figure class="card {role}"><figcaption><b>{escape(say(language, role))}</b>'
        f'<span class="costs">{facts}</span></figcaption>'
        f'<div class="pictures m{min(len(pictures), 3)}">{shown}</div></figure>'
    )


def _picture(picture: dict[str, Any], language: str) -> str:
    url, download = _url(picture), escape(say(language, "download"))
    read = picture.get("ocr")
    lines = "".join(_verdict(number, line, language) for number, line in enumerate(read or (), 1))
    verdicts = f'<ul class="verdicts">{lines}</ul>' if lines else ""
    return (
        f'<div class="picture"><a href="{url}" target="_blank" rel="noopener"><img src="{url}" alt=""></a>{verdicts}'
        f'<a class="download" href="{url}" download="{escape(picture["file"])}">{download}</a></div>'
    )


def _verdict(number: int, line: dict[str, Any], language: str) -> str:
    text = escape(line["text"])
    if line["exact"]:
        verdict, kind = escape(say(language, "read_right")), "right"
    elif line["read"]:
        verdict, kind = escape(say(language, "read_as", line["read"])), "wrong"
    else:
        verdict, kind = escape(say(language, "read_nothing")), "wrong"
    return (
        f'<li class="{kind} line-{number}"><span class="text">{text}</span><span class="verdict">{verdict}</span></li>'
    )


def _url(picture: dict[str, Any]) -> str:
    return escape(f"{RESULTS_URL}/{picture['file']}")
