from __future__ import annotations

import itertools
import sys
from functools import cache

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from distill.evaluation.ocr import (
    LINE_HEIGHT,
    OcrNotInstalled,
    RapidOcr,
    exact_match,
    levenshtein,
    ned,
    normalise,
    reading_corners,
    upright_crop,
)
from tests.helpers.paths import ROOT

FONT = ROOT / "fonts" / "wqy-microhei.ttc"


def rectangle(centre: tuple[float, float], width: float, height: float, degrees: float) -> np.ndarray:
    """Corners in reading order; the text runs at `degrees` clockwise from the horizontal."""
    angle = np.radians(degrees)
    u, v = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    middle = np.array(centre)
    across, down = u * width / 2, v * height / 2
    return np.stack([middle - across - down, middle + across - down, middle + across + down, middle - across + down])


def written(text: str, degrees: float = 0.0, size: int = 192, points: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """A picture of `text`, rotated about its middle, and the polygon around it."""
    font = ImageFont.truetype(str(FONT), points)
    image = Image.new("RGB", (size, size), (235, 225, 200))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    at = ((size - right - left) / 2, (size - bottom - top) / 2)
    draw.text(at, text, font=font, fill=(30, 40, 120))
    matrix = cv2.getRotationMatrix2D((size / 2, size / 2), -degrees, 1.0)
    turned = cv2.warpAffine(
        np.array(image), matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return turned, rectangle((size / 2, size / 2), right - left, bottom - top, degrees)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_edit_distance_is_the_recursive_definition():
    @cache
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    words = ["".join(letters) for n in range(4) for letters in itertools.product("ab", repeat=n)] + [
        "kitten",
        "sitting",
    ]
    for a, b in itertools.product(words, repeat=2):
        assert levenshtein(a, b) == slow(a, b)
    assert levenshtein("kitten", "sitting") == 3


def test_ned_counts_against_the_longer_text():
    assert ned("abcd", "abcd") == 1.0
    assert ned("", "abcd") == 0.0
    assert ned("abcx", "abcd") == pytest.approx(0.75)
    assert ned("ab", "abcd") == ned("abcd", "ab") == pytest.approx(0.5)
    assert ned("", " ") == 1.0


def test_normalisation_joins_widths_and_spaces_but_not_case():
    assert normalise(" A\u3000B\tc ") == "ABc"
    assert exact_match("ＡＢＣ１２３", "ABC 123")
    assert exact_match("你好，世界", "你好,世界")
    assert not exact_match("abc", "ABC")
    assert not exact_match("", "A")


# --- crops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 7, -20, 44, 46, -60, 75, -79])
def test_corners_are_in_reading_order_however_the_polygon_starts(degrees):
    expected = rectangle((60, 50), 40, 15, degrees)
    for start, step in itertools.product(range(4), (1, -1)):
        polygon = np.roll(expected, start, axis=0)[::step]
        assert np.allclose(reading_corners(polygon), expected, atol=0.05), (start, step)


def test_corners_of_upright_and_square_boxes():
    tall = rectangle((60, 50), 12, 50, 4)  # vertical writing: the top edge is the short one
    assert np.allclose(reading_corners(tall[::-1]), tall, atol=0.05)
    squarish = rectangle((60, 50), 30, 33, 25)  # one character: its taller side says nothing
    assert np.allclose(reading_corners(np.roll(squarish, 2, axis=0)), squarish, atol=0.05)


def test_a_polygon_with_more_points_uses_its_smallest_rectangle():
    box = rectangle((50, 50), 40, 20, 30)
    polygon = np.concatenate([box[:1], (box[:1] + box[1:2]) / 2, box[1:]])
    assert np.allclose(reading_corners(polygon), box, atol=0.05)


@pytest.mark.parametrize("polygon", [[[1, 1], [9, 1]], [[3, 3], [3, 3], [3, 3]], [[0, 0], [5, 5], [9, 9], [4, 4]]])
def test_a_polygon_without_area_is_an_error(polygon):
    with pytest.raises(ValueError, match="line polygon .* needs 3 points"):
        upright_crop(np.zeros((20, 20, 3), np.uint8), np.array(polygon))


@pytest.mark.parametrize("degrees", [0, 30, -70])
def test_a_crop_is_upright_and_not_mirrored(degrees):
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))  # top left, top right, bottom right, bottom left
    box = rectangle((64, 64), 60, 24, degrees)
    middle = box.mean(axis=0)
    image = np.full((128, 128, 3), 128, np.uint8)
    for corner in range(4):
        part = np.stack(
            [box[corner], (box[corner] + box[(corner + 1) % 4]) / 2, middle, (box[corner] + box[corner - 1]) / 2]
        )
        cv2.fillPoly(image, [np.round(part).astype(np.int32)], colours[corner])
    crop = upright_crop(image, box, margin=0.0)
    assert crop.shape == (LINE_HEIGHT, 120, 3) and crop.dtype == np.uint8
    for (y, x), colour in zip(((12, 30), (12, 90), (36, 90), (36, 30)), colours, strict=True):
        assert np.abs(crop[y, x].astype(int) - colour).max() < 10


def test_a_margin_is_room_on_every_side_and_the_border_is_repeated():
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:30, 20:80] = 255
    box = rectangle((50, 20), 60, 20, 0)
    narrow, wide = upright_crop(image, box, margin=0.0), upright_crop(image, box, margin=0.5)
    assert narrow.shape == (48, 144, 3) and wide.shape == (48, 96, 3)  # 60 x 20 and 80 x 40
    assert wide[24, 48].min() == 255 and wide[3, 3].max() == 0 and wide[44, 92].max() == 0
    outside = upright_crop(np.full((40, 100, 3), 77, np.uint8), rectangle((0, 0), 60, 20, 0))
    assert (outside == 77).all()


def test_tall_lines_lie_down_and_large_ones_are_averaged():
    tall = upright_crop(np.zeros((100, 100, 3), np.uint8), rectangle((50, 50), 20, 80, 0), margin=0.0)
    assert tall.shape == (48, 192, 3)
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[::2] = 255  # point sampling would return stripes; their mean is grey
    crop = upright_crop(stripes, rectangle((256, 256), 480, 240, 0), margin=0.0)
    assert abs(float(crop.mean()) - 127.5) < 3 and float(crop.std()) < 30


# --- the engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> RapidOcr:
    pytest.importorskip("rapidocr_onnxruntime")
    return RapidOcr(threads=1, batch=3)


@pytest.mark.parametrize("degrees", [0, -25, 70])
@pytest.mark.parametrize("text", ["Harbour", "Zug 42", "天气很好"])
def test_drawn_lines_are_read(reader, text, degrees):
    image, polygon = written(text, degrees)
    (read,) = reader.recognize_lines(image, [polygon])
    assert exact_match(read, text)


def test_what_is_read_does_not_depend_on_the_company(reader):
    lines = [upright_crop(*written(text)) for text in ("Moon", "A long line of text", "Rivers", "春天", "Lantern 7")]
    together = reader.recognize(lines)
    assert together == [reader.recognize([line])[0] for line in lines]
    assert together == list(reversed(reader.recognize(lines[::-1])))
    assert together[0] == "Moon" and reader.recognize([]) == []


def test_the_engine_sees_bgr_of_a_width_of_the_lines_own(reader, monkeypatch):
    seen: dict[int, tuple[list[int], float]] = {}
    original = reader._engine.resize_norm_img

    def spy(image: np.ndarray, elongation: float) -> np.ndarray:
        seen[image.shape[1]] = (image[0, 0].tolist(), elongation)
        return original(image, elongation)

    monkeypatch.setattr(reader._engine, "resize_norm_img", spy)
    reader.recognize([np.full((48, width, 3), (250, 100, 0), np.uint8) for width in (40, 96, 97, 300)])
    assert seen == {w: ([0, 100, 250], n) for w, n in ((40, 2.0), (96, 2.0), (97, 3.0), (300, 7.0))}


def test_an_empty_picture_reads_as_nothing(reader):
    assert reader.recognize([np.full((48, 120, 3), 200, np.uint8)]) == [""]


def test_the_charset_is_known(reader):
    assert reader.in_charset("Abc 123 你好") and not reader.in_charset("안녕")


def test_a_missing_engine_is_one_line_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(OcrNotInstalled, match=r"pip install 'anytext2-distill\[ocr\]'") as caught:
        RapidOcr()
    assert "\n" not in str(caught.value)


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match="threads=0"):
        RapidOcr(threads=0)


# --- lines among others ----------------------------------------------------------------------------------------------


def test_reading_in_groups_is_what_the_engine_s_own_call_reads():
    reader = RapidOcr()
    for text in ("Hello", "HELLO中文", "a much longer line of words", "7"):
        image, polygon = written(text, size=420)
        crop = upright_crop(image, polygon)
        elongation = max(2, -(-crop.shape[1] // crop.shape[0]))
        reader._engine.rec_image_shape = [3, LINE_HEIGHT, LINE_HEIGHT * elongation]
        ((own, _confidence),), _ = reader._engine([np.ascontiguousarray(crop[..., ::-1])])
        assert reader.recognize([crop]) == [own]


def test_what_the_engine_sees_tells_texts_apart_more_than_their_looks():
    reader = RapidOcr()
    characters = sorted(set("HELOWRDKITS"))

    def seen(text: str, points: int = 28) -> np.ndarray:
        image, polygon = written(text, points=points)
        texts, embedding = reader.embed(image, [polygon], [*characters, "\u0416"])
        assert texts == [text] and embedding.shape == (1, len(characters) + 3)
        return embedding[0]

    assert np.linalg.norm(seen("HELLO")) == pytest.approx(1.0, abs=1e-5)
    assert seen("HELLO")[-3] == 0.0  # a character that the engine does not know
    other_look = np.linalg.norm(seen("HELLO") - seen("HELLO", 34))
    assert other_look < 0.3 * np.linalg.norm(seen("HELLO") - seen("KITS"))
    nothing = reader.embed(np.full((64, 200, 3), 200, np.uint8), [rectangle((100, 32), 120, 30, 0)], characters)
    assert nothing[0] == [""] and nothing[1][0, -1] > 0.8
