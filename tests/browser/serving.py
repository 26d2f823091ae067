"""The real page as a process, and a browser to look at it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.model import make_model
from tests.helpers.paths import ROOT
from tests.helpers.stored_run import write_run

CHROMIUM = "/usr/bin/chromium"
DEMO = ROOT / "runs" / "demo"
START_SECONDS = 300
_ADDRESS = re.compile(r"the page: (http://127\.0\.0\.1:\d+/)")


def student(folder: Path) -> Path:
    """The student of `make demo` where there is one, else one that was not trained: it draws as the teacher's weights.

    With a student's sampler and without guidance these are read right in most pictures (README, 0.86 of the lines).
    """
    if (DEMO / "recipe.yaml").is_file():
        return DEMO
    recipe = load_recipe(DEFAULT_RECIPE, [f"run_root={folder}", "name=student"])
    torch.manual_seed(0)
    write_run(folder / "student", recipe, make_model(recipe.model, recipe.seed), scale=0.0)
    return folder / "student"


@contextmanager
def served_page(out: Path, *options: str) -> Iterator[str]:
    """The address of a page that is served by `launch/demo.py` with these options, into the folder `out`.

    Its user's home folder is `home` beside it, in which nothing may be written.
    """
    command = [sys.executable, "launch/demo.py", "--port", "0", "--out", str(out), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    home, log = out.with_name("home"), out.with_suffix(".log")
    home.mkdir(exist_ok=True)
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
    try:
        yield _address(process, log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[Any], log: Path) -> str:
    """Waits for the line that says where the page is."""
    for _ in range(START_SECONDS * 5):
        if found := _ADDRESS.search(log.read_text(encoding="utf-8")):
            return found[1]
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the page did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")


@contextmanager
def launched_browser(folder: Path) -> Iterator[Any]:
    """Debian's Chromium without a window, with the Chinese font of this repository. folder: for its font list."""
    from playwright.sync_api import sync_playwright

    (folder / "fonts").symlink_to(ROOT / "fonts")
    environment: dict[str, str | float | bool] = {**os.environ, "XDG_DATA_HOME": str(folder)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], env=environment)
        try:
            yield browser
        finally:
            browser.close()


def open_page(context: Any, address: str) -> Any:
    """A tab with the page, when its language is known and its components are there."""
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body.spoken", timeout=60_000)
    page.wait_for_selector("#prompt textarea")
    return page


def drag(page: Any, selector: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags the mouse between two places of an element, given as shares of its width and height."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (begin, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()
