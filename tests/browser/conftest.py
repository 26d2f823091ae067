"""One page and one browser for all tests of this folder; each test has a context, as a person has a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.serving import launched_browser, open_page, served_page, student


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page."""
    return tmp_path_factory.mktemp("served") / "page"


@pytest.fixture(scope="session")
def address(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    checkpoint = student(tmp_path_factory.mktemp("student"))
    with served_page(out, "--checkpoint", str(checkpoint)) as place:
        yield place


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with launched_browser(tmp_path_factory.mktemp("browser")) as launched:
        yield launched


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a new context. Afterwards no request may have left 127.0.0.1, and no script have failed."""
    contexts, left, failed = [], list[str](), list[str]()

    def watch(context: Any, where: str) -> Any:
        context.on("request", lambda request: _note_request(request, left))
        context.on("weberror", lambda error: failed.append(str(error.error)))
        context.on("console", lambda said: failed.append(said.text) if said.type == "error" else None)
        return open_page(context, where)

    def opened(locale: str = "en-US", where: str = address, **options: Any) -> Any:
        contexts.append(browser.new_context(locale=locale, **({"viewport": {"width": 1280, "height": 900}} | options)))
        contexts[-1].set_default_timeout(60_000)
        return watch(contexts[-1], where)

    yield opened
    for context in contexts:
        context.close()
    assert (left, failed) == ([], [])


def _note_request(request: Any, left: list[str]) -> None:
    if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        left.append(request.url)
