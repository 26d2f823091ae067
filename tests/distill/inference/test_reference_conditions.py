"""What the model is told of a prompt is what the reference tells it of the same texts, places, colours and fonts."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, features

from anytext2.core.batch import Sample
from distill.inference.fonts import imitated_strokes
from distill.inference.places import places_from_mask
from distill.inference.request import DrawingRequest, Imitation
from tests.helpers.models.official_golden import golden_tensor, read_golden
from tests.helpers.models.recorded_prompt import recorded_prompt, reference_preparation
from tests.helpers.paths import ROOT

RECORDED = ROOT / "tests" / "golden" / "reference_data" / "samples.npz"
SAMPLES = json.loads(RECORDED.with_suffix(".json").read_text(encoding="utf-8"))
FREETYPE = tuple(map(int, (features.version("freetype2") or "0").split(".")))

pytestmark = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")


def recorded(name: str, shape: tuple[int, int] = (512, 512)) -> np.ndarray:
    with np.load(RECORDED) as arrays:
        return np.unpackbits(arrays[name], count=shape[0] * shape[1]).reshape(shape)


def assert_line(line: torch.Tensor, reference: np.ndarray) -> None:
    """Equal, but for pixels of the contour that FreeType's rasteriser decides anew since 2.13.3."""
    differs = line.numpy() != reference
    contour = cv2.morphologyEx(reference, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    assert differs.sum() <= (0.006 * reference.sum() if FREETYPE >= (2, 13, 3) else 0)
    assert not (differs & (contour == 0)).any()


def annotations(number: int) -> tuple[list[str], list[list[list[int]]], list[list[int] | None]]:
    """Texts, polygons and colours of the valid lines of a recorded sample."""
    lines = [line for line in SAMPLES["data"]["data_list"][number]["annotations"] if line.get("valid", True)]
    texts = SAMPLES["samples"][number]["texts"]
    return texts, [line["polygon"] for line in lines], [line.get("color") for line in lines]


def sample_of(number: int, **settings: object) -> Sample:
    """A recorded sample's texts as a prompt."""
    texts, polygons, colors = annotations(number)
    quoted = " ".join(f"“{text}”" for text in texts)
    places = {} if "mask" in settings else {"polygons": polygons}
    request = DrawingRequest(prompt=f"a wall {quoted}", colors=colors, **(places | settings))
    return reference_preparation(512)(request).sample


def test_the_recorded_batch_as_a_prompt():
    """Everything but the font hint, which the reference cuts at random from the picture."""
    golden, sample = read_golden("b_batch"), recorded_prompt().sample
    assert torch.equal(sample.image, golden_tensor(golden, "img_u8")[0].permute(2, 0, 1))
    hint = golden_tensor(golden, "hint_u8")[0, ..., 0] // 255
    expected = torch.where(hint.bool(), torch.zeros_like(sample.image), sample.image)
    assert torch.equal(sample.masked_image, expected) and sample.editing
    pages = [golden[f"glyphs_{n}_u8"][0].any(axis=-1) for n in (0, 1)]
    assert np.array_equal(sample.glyph[0].numpy(), pages[0] | pages[1])
    assert torch.equal(sample.position.amax(0), hint)
    for n in (0, 1):
        assert torch.equal(sample.position[n], golden_tensor(golden, f"positions_{n}_u8")[0, ..., 0] // 255)
        assert_line(sample.glyph_line[n], golden[f"gly_line_{n}_u8"][0, ..., 0] // 255)
        assert torch.equal(sample.color[n].long(), golden_tensor(golden, f"color_{n}")[0])
    assert not sample.inverse_mask.any() and sample.texts == ("你好", "OPEN")
    assert sample.text_caption == "Text:  * , * . "


@pytest.mark.parametrize("number", [0, 1])
def test_recorded_samples_as_prompts(number):
    texts, _, colors = annotations(number)
    sample = sample_of(number)
    assert list(sample.texts) == texts and sample.text_caption.count(" * ") == len(texts)
    pages = [recorded(f"{number}/page{n}") for n in range(len(texts))]
    assert np.array_equal(sample.glyph[0].numpy(), np.bitwise_or.reduce(pages))
    for n, color in enumerate(colors):
        assert_line(sample.glyph_line[n], recorded(f"{number}/line{n}", (80, 512)))
        assert sample.color[n].tolist() == (color or [500, 500, 500])


def test_a_recorded_sample_from_its_mask():
    """All positions in one mask: each text goes to its shape, and the drawing is the recorded one."""
    texts, _, colors = annotations(1)
    positions = [recorded(f"1/position{n}") for n in range(len(texts))]
    mask = np.bitwise_or.reduce(positions) * 255
    order = [
        max(range(len(texts)), key=lambda n: int((positions[n] & place.position_mask((512, 512))).sum()))
        for place in places_from_mask(mask, (512, 512))
    ]
    prompt = " ".join(f"“{texts[n]}”" for n in order)
    request = DrawingRequest(prompt=prompt, mask=mask, colors=[colors[n] for n in order])
    sample = reference_preparation(512)(request).sample
    assert sorted(order) == list(range(len(texts)))
    assert all(np.array_equal(sample.position[at].numpy(), positions[n]) for at, n in enumerate(order))
    assert np.array_equal(sample.glyph[0].numpy(), np.bitwise_or.reduce([recorded(f"1/page{n}") for n in order]))


@pytest.mark.parametrize("number", [0, 1])
def test_a_named_font_is_hinted_at_as_the_reference_hints(number):
    """There, the page of a white line in the chosen font; the recorded pages are in the first font of the table."""
    texts, _, colors = annotations(number)
    fonts = ["wqy-microhei" if color == [255, 255, 255] else None for color in colors]
    white = [n for n, font in enumerate(fonts) if font]
    hint = sample_of(number, fonts=fonts).font_hint[0].numpy()
    assert white and np.array_equal(hint, np.bitwise_or.reduce([recorded(f"{number}/page{n}") for n in white]))


def test_black_and_white_are_colours_and_none_is_none():
    """The reference's demo takes both for none."""
    prepare = reference_preparation(512)
    boxes = [(10, 10, 300, 80), (10, 110, 300, 180), (10, 210, 300, 280)]
    request = DrawingRequest(prompt='"A" "B" "C"', boxes=boxes, colors=["black", "#ffffff", None])
    assert prepare(request).sample.color.tolist() == [[0] * 3, [255] * 3, [500] * 3]


def test_letters_are_imitated_in_the_line_that_they_were_given_for_and_in_true_colours():
    """The reference counts lines without letters out, and greys pictures with red for blue."""
    page = Image.new("RGB", (120, 60), (0, 0, 255))
    page.paste((255, 0, 0), (30, 10, 50, 50))
    grey = np.array(page.convert("L"))[..., None].repeat(3, axis=2)
    assert torch.equal(imitated_strokes(Imitation(page)), imitated_strokes(Imitation(grey)))
    prepare, boxes = reference_preparation(512), [(10, 10, 300, 80), (10, 110, 300, 180)]
    plain, imitated = (
        prepare(DrawingRequest(prompt='"A" "B"', boxes=boxes, fonts=fonts)).batch(0, 1).font_line
        for fonts in ((), (None, Imitation(page)))
    )
    assert torch.equal(plain[0], imitated[0]) and not torch.equal(plain[1], imitated[1])
