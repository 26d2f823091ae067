"""The page as a person uses it, in a real browser: drawing, editing, languages, wrong input, a phone."""

from __future__ import annotations

import http.client
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.inference.prompt_file import METADATA, read_metadata
from tests.browser.serving import drag, served_page
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.browser

SIGN = ROOT / "docs" / "examples" / "sign.jpg"
Visit = Callable[..., Any]


def write(page: Any, prompt: str) -> None:
    page.fill("#prompt textarea", prompt)


def says(page: Any, field: str, words: str) -> None:
    """Waits for a message beside a field."""
    page.locator(f"#message-{field}", has_text=words).wait_for()


def draw(page: Any) -> None:
    """Presses the button and waits for the result."""
    before = page.locator("#result .cards").get_attribute("data-result") or ""
    page.click("#draw")
    page.wait_for_selector(f'#result .cards[data-result]:not([data-result="{before}"])')


def natural_size(page: Any, selector: str) -> list[int]:
    image = page.locator(selector)
    page.wait_for_function("(image) => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    size: list[int] = image.evaluate("(image) => [image.naturalWidth, image.naturalHeight]")
    return size


def download(page: Any, role: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(f"#result .card.{role} .download")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_place_is_drawn_and_student_and_teacher_write_into_it(visit: Visit, tmp_path: Path, out: Path) -> None:
    page = visit()
    drag(page, "#canvas-new svg", (0.05, 0.25), (0.95, 0.75))
    assert page.locator("#canvas-new .place").count() == 1
    write(page, 'a wooden board that reads "OPEN"')
    page.locator("#canvas-new .place", has_text="OPEN").wait_for()
    page.wait_for_function("document.querySelector('#text0 input, #text0 textarea').value === 'OPEN'")
    draw(page)
    assert page.locator("#result .card").count() == 2
    for role, steps, calls in (("student", "4", "4"), ("teacher", "20", "40")):
        card = f"#result .card.{role}"
        assert natural_size(page, f"{card} img") == [128, 128]
        assert [page.inner_text(f"{card} .{name}") for name in ("steps", "unet_calls")] == [steps, calls]
        assert float(page.inner_text(f"{card} .seconds")) > 0
        assert page.inner_text(f"{card} .verdicts .text") == "OPEN"
    assert "read right" in page.inner_text("#result .card.teacher .verdicts .right")
    saved = download(page, "student", tmp_path)
    settings, (line,) = read_metadata(saved)["settings"], read_metadata(saved)["lines"]
    assert settings["prompt"] == 'a wooden board that reads "OPEN"' and settings["num_inference_steps"] == 4
    corners = np.array(line["polygon"])
    assert (corners.min(0) >= [5, 31]).all() and (corners.max(0) <= [123, 97]).all()  # in the place, around the text
    assert np.allclose(corners.mean(0), [64, 64], atol=4)
    (picture,) = [p for p in read_metadata(saved)["pictures"] if p["role"] == "student"]
    verdict = page.inner_text("#result .card.student .verdicts .verdict")
    assert ("read right" in verdict) == picture["ocr"][0]["exact"]
    assert saved.name in {file.name for file in (out / "results").iterdir()}


def test_a_place_is_moved_turned_and_removed(visit: Visit) -> None:
    page = visit()
    write(page, '"A" "B"')
    page.locator("#canvas-new .ghost", has_text="B").wait_for()  # where they would go by themselves
    drag(page, "#canvas-new svg", (0.1, 0.1), (0.5, 0.3))
    says(page, "places", "2 texts, but only 1 place")
    drag(page, "#canvas-new svg", (0.3, 0.2), (0.6, 0.7))  # by its middle
    place = page.locator("#canvas-new .place")
    assert place.get_attribute("transform") == "translate(76.8 89.6) rotate(0)"
    page.keyboard.press("ArrowLeft")
    assert (place.get_attribute("transform") or "").startswith("translate(75.8 89.6)")
    knob = page.locator("#canvas-new .knob").bounding_box()
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    page.mouse.move(knob["x"] + 90, knob["y"] + 60, steps=4)
    page.mouse.up()
    assert not (place.get_attribute("transform") or "").endswith("rotate(0)")
    page.keyboard.press("Delete")
    assert place.count() == 0
    page.locator("#canvas-new .ghost", has_text="B").wait_for()
    drag(page, "#canvas-new [data-ghost='0'] .body", (0.5, 0.5), (0.5, 0.6))  # the layout becomes one's own
    assert place.count() == 2


def test_a_photograph_is_edited_and_unchanged_elsewhere(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    page.click("#tab-edit-button")
    write(page, 'a blue sign "SHOP"')
    says(page, "places", "Choose the picture to edit")
    page.set_input_files("#canvas-edit .drop input", SIGN)
    says(page, "places", "Drag a box to say where to write")
    drag(page, "#canvas-edit svg", (60 / 320, 80 / 240), (260 / 320, 150 / 240))
    says(page, "places", "of its 320 x 240 px the model sees")
    draw(page)
    assert natural_size(page, "#result .card.student img") == [320, 240]
    assert page.inner_text("#result .card.teacher .verdicts .text") == "SHOP"
    edited = np.array(Image.open(download(page, "student", tmp_path)))
    original = np.array(Image.open(SIGN))
    changed = np.argwhere((edited != original).any(axis=2))
    assert len(changed) and (changed.min(0) >= (74, 54)).all() and (changed.max(0) <= (156, 266)).all()


def test_the_browser_s_language_is_spoken_and_can_be_switched(visit: Visit) -> None:
    page = visit("zh-CN")
    assert page.inner_text("#draw") == "生成" and page.inner_text("#tab-edit-button") == "编辑照片"
    write(page, "a wall")
    says(page, "prompt", "引号里没有文字")
    page.click("#language label:has-text('English')")
    page.locator("#draw", has_text="Draw").wait_for()
    says(page, "prompt", "No words in quotes")
    assert page.input_value("#prompt textarea") == "a wall"
    assert page.evaluate("document.documentElement.lang") == "en"
    page.reload()
    page.wait_for_selector("body.spoken")
    assert page.inner_text("#draw") == "Draw"  # the choice is remembered
    assert visit("en-US").inner_text("#draw") == "Draw"


def test_nonsense_is_refused_with_a_line(visit: Visit, tmp_path: Path, out: Path) -> None:
    page = visit()
    (tmp_path / "nonsense.png").write_bytes(b"no picture at all")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(11_000_000))
    Image.new("L", (128, 128)).save(tmp_path / "empty.png")
    kept = sorted((out / "uploads").iterdir())
    page.click("#tab-edit-button")
    page.set_input_files("#canvas-edit .drop input", tmp_path / "nonsense.png")
    says(page, "places", "not a picture that can be read")
    page.set_input_files("#canvas-edit .drop input", tmp_path / "huge.png")
    says(page, "places", "too large: at most 10 MB")
    assert sorted((out / "uploads").iterdir()) == kept
    assert not list((out / "temporary").rglob("*.png"))
    page.click("#tab-generate-button")
    write(page, '"A"')
    page.set_input_files("#canvas-new .mask input", tmp_path / "empty.png")
    says(page, "places", "The mask is empty")
    page.click("#canvas-new .clear")
    page.locator("#canvas-new .ghost", has_text="A").wait_for()


def test_wrong_input_is_said_beside_its_field_before_and_after_the_button(visit: Visit) -> None:
    page = visit()
    for prompt, field, words in (
        ("a wall", "prompt", "No words in quotes"),
        ('a "wall', "prompt", "not closed"),
        ('a wall ""', "prompt", "nothing to draw"),
        (f'"{"A" * 21}"', "prompt", "has 21 characters, at most 20"),
        ('"ABCDEFGHIJKLMNO"', "places", "is wider than 128 x 128 px"),
        ('"A" "B" "C" "D" "E" "F"', "prompt", "6 texts, at most 5"),
    ):
        write(page, prompt)
        says(page, field, words)
    page.click("#draw")
    says(page, "prompt", "6 texts, at most 5")
    write(page, '"OPEN"')
    drag(page, "#canvas-new svg", (0.1, 0.1), (0.5, 0.25))
    says(page, "places", "letters would be 1")  # 10 to 19 px
    says(page, "places", "the tiny model writes from 40 px")
    page.fill("#color0 input", "octarine")
    page.keyboard.press("Enter")
    says(page, "lines", "“octarine” is no colour")
    page.click("#draw")
    says(page, "lines", "“octarine” is no colour")
    assert page.locator("#result .verdicts").count() == 0
    assert page.locator(".toast-body, .toast-wrap .error").count() == 0


def test_a_result_is_opened_again_and_its_settings_used(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    page.click("#try-two")
    page.locator("#canvas-new .place", has_text="茶").wait_for()
    page.click("#teacher input")
    draw(page)
    assert page.locator("#result .card").count() == 1
    with Image.open(io.BytesIO(download(page, "student", tmp_path).read_bytes())) as image:
        assert METADATA in image.info
    again = visit()
    again.click("#history .past >> nth=0")
    again.locator("#result .card.student .verdicts", has_text="茶").wait_for()
    again.click("#reuse")
    again.locator("#canvas-new .place", has_text="茶").wait_for()
    assert "茶" in again.input_value("#prompt textarea") and not again.is_checked("#teacher input")


def test_nothing_overflows_on_a_phone(visit: Visit) -> None:
    page = visit("zh-CN", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.click("#settings > button")
    page.click("#tab-edit-button")
    page.click("#try-photo")
    page.locator("#canvas-edit .place", has_text="SHOP").wait_for()
    draw(page)
    width = page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    assert width <= 390
    assert page.locator("#result").bounding_box()["y"] < 844  # the page has scrolled to it


def test_the_teacher_alone_is_sampled_with_ddim(visit: Visit, tmp_path: Path) -> None:
    with served_page(tmp_path / "page", "--use_ddim_sampler") as where:
        page = visit(where=where)
        assert "the teacher alone" in page.inner_text("#header")
        assert not page.is_visible("#steps") and page.is_visible("#teacher-steps")
        write(page, 'a wooden board that reads "OPEN"')
        draw(page)
        assert page.locator("#result .card").count() == 1
        assert page.inner_text("#result .card.teacher .unet_calls") == "40"
        assert "read right" in page.inner_text("#result .card.teacher .verdicts .right")
        files = {path.name for path in (tmp_path / "page").iterdir()}
        assert files == {"results", "temporary", "uploads"}
        assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def listening(port: int) -> set[str]:
    """The addresses, as the kernel writes them, on which some process listens at a port."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    places = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {host for host, where in places if int(where, 16) == port}


def test_only_this_machine_is_answered(address: str, out: Path) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    assert listening(port) == {"0100007F"}  # 127.0.0.1
    for host, status in (("127.0.0.1", 200), ("example.org", 400)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        assert answer.status == status
        answer.read()
    for path in (
        "/results/../uploads",
        "/docs",
        "/openapi.json",
        f"/gradio_api/file={ROOT / 'README.md'}",
        "/config/..",
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", path)
        assert connection.getresponse().status in (403, 404), path
