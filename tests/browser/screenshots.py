"""Makes docs/page_en.png and docs/page_zh.png: `python -m tests.browser.screenshots`, after `make demo`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser.serving import launched_browser, open_page, served_page, student
from tests.helpers.paths import ROOT

MOST_BYTES = 300_000
WIDTH, HEIGHT = 1280, 920
STORY = ("sign", "photo", "chinese", "two")
"""The examples that are drawn one after the other, so that the last ten are not empty."""


def draw_example(page: Any, name: str) -> None:
    """Presses an example and the button, and waits for the pictures."""
    before = page.locator("#result .cards").get_attribute("data-result") or ""
    page.click("#tab-edit-button" if name == "photo" else "#tab-generate-button")
    page.click(f"#try-{name}")
    page.locator(".canvas .place:visible, .canvas .ghost:visible").first.wait_for()
    page.click("#draw")
    page.wait_for_selector(f'#result .cards[data-result]:not([data-result="{before}"])', timeout=120_000)


def screenshot(browser: Any, address: str, locale: str, path: Path) -> None:
    """A picture of the page in a language, after the story."""
    context = browser.new_context(locale=locale, viewport={"width": WIDTH, "height": HEIGHT})
    page = open_page(context, address)
    for name in STORY:
        draw_example(page, name)
    page.evaluate("document.activeElement?.blur()")
    page.mouse.move(WIDTH - 2, 2)
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)
    context.close()
    with Image.open(path) as taken:
        taken.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path}: more than {MOST_BYTES} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the page in docs/.")
    parser.add_argument("--checkpoint", type=Path, help="default: runs/demo, else an untrained student")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "browser").mkdir()
        checkpoint = args.checkpoint or student(folder)
        with launched_browser(folder / "browser") as browser:
            for locale, file in (("en-US", "page_en.png"), ("zh-CN", "page_zh.png")):
                with served_page(folder / locale, "--checkpoint", str(checkpoint)) as address:
                    screenshot(browser, address, locale, args.out / file)


if __name__ == "__main__":
    main()
