"""Glyph pages, glyph lines and captions equal what the reference's data class made (tests/golden/reference_data)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features

from anytext2.core.batch import Sample
from anytext2.data.annotations import load_records
from anytext2.data.captions import text_caption
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs import reference_render, render
from anytext2.glyphs.fonts import load_font_table
from tests.helpers.models.official_golden import GOLDEN as OFFICIAL
from tests.helpers.models.official_golden import read_golden
from tests.helpers.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "reference_data"
RECORDED = json.loads((GOLDEN / "samples.json").read_text(encoding="utf-8"))
FONTS = load_font_table()
OPTIONS = DatasetConfig(rand_font=False, mask_img_prob=0, font_hint_prob=0, like_reference=True)
BOW_TIE = (0, 0)  # sample and line
FREETYPE = tuple(map(int, (features.version("freetype2") or "0").split(".")))

pytestmark = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")


def _bits(name: str, shape: tuple[int, int] = (512, 512)) -> np.ndarray:
    with np.load(GOLDEN / "samples.npz") as arrays:
        return np.unpackbits(arrays[name], count=shape[0] * shape[1]).reshape(shape)


def _page(text: str, polygon: Any, color: tuple[int, ...] | None, size: tuple[int, int] = (512, 512)) -> np.ndarray:
    page = np.zeros(size, np.uint8)
    assert color is None or len(color) == 3
    given = None if color is None else (color[0], color[1], color[2])
    reference_render.glyph_page_bitmap(text, np.float32(polygon), size, FONTS.default, given).paste_onto(page)
    return page


def _assert_line(line: np.ndarray, recorded: np.ndarray) -> None:
    """Equal where FreeType's bilevel rasteriser is the recorded one's; since 2.13.3 it decides some pixels anew."""
    if FREETYPE < (2, 13, 3):
        assert np.array_equal(line, recorded)
    contour = cv2.morphologyEx(recorded, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    differs = line != recorded
    assert differs.sum() <= 0.006 * recorded.sum() and not (differs & (contour == 0)).any()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """The recorded samples, made of the same annotation file and of blank pictures of 512 px."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "imgs").mkdir()
    for item in RECORDED["data"]["data_list"]:
        Image.new("RGB", (512, 512)).save(folder / "imgs" / item["img_name"])
    (folder / "data.json").write_text(json.dumps(RECORDED["data"]), encoding="utf-8")
    records, _ = load_records(folder / "data.json", OPTIONS.wm_threshold, OPTIONS.tells_watermarks)
    dataset = AnyWordDataset(records, OPTIONS, 0, FONTS)
    return [dataset.sample(index, 0) for index in range(len(dataset))]


@pytest.mark.parametrize("number", range(4))
def test_samples_equal_the_recorded_ones(samples: list[Sample], number: int) -> None:
    sample, recorded = samples[number], RECORDED["samples"][number]
    assert sample.image_caption == recorded["img_caption"]
    assert list(sample.texts) == recorded["texts"] and sample.n_lines == recorded["n_lines"]
    assert sample.text_caption.partition("*")[2] == recorded["text_caption"].partition("*")[2]
    pages = [_bits(f"{number}/page{line}") for line in range(sample.n_lines)]
    assert np.array_equal(sample.glyph[0].numpy(), np.bitwise_or.reduce(pages))
    for line in range(sample.n_lines):
        _assert_line(sample.glyph_line[line].numpy(), _bits(f"{number}/line{line}", (80, 512)))


def test_positions_are_the_recorded_ones_but_for_the_bow_tie(samples: list[Sample]) -> None:
    for number, sample in enumerate(samples):
        for line, polygon in enumerate(sample.polygons):
            ours, recorded = render.position_mask(polygon, (512, 512)), _bits(f"{number}/position{line}")
            if (number, line) == BOW_TIE:  # there, half of the line is missing
                assert (ours >= recorded).all() and recorded.sum() < 0.6 * ours.sum()
                assert ours.sum() == 201 * 61
            else:
                assert np.array_equal(ours, recorded)


def test_the_recorded_batch() -> None:
    """tests/golden/official/b_batch.npz, drawn at 256 px; its polygons, read off the recorded position masks."""
    golden, texts = read_golden("b_batch"), ("你好", "OPEN")
    polygons = [[(32, 36), (140, 36), (140, 96), (32, 96)], [(240, 204), (104, 214), (100, 160), (236, 150)]]
    for line, (text, polygon) in enumerate(zip(texts, polygons, strict=True)):
        recorded = golden[f"glyphs_{line}_u8"][0].any(axis=-1)
        assert np.array_equal(_page(text, polygon, tuple(golden[f"color_{line}"][0].tolist()), (256, 256)), recorded)
        drawn = np.zeros((80, 512), np.uint8)
        reference_render.glyph_line_bitmap(text, FONTS.default).paste_onto(drawn)
        _assert_line(drawn, golden[f"gly_line_{line}_u8"][0, ..., 0] // 255)


def test_the_recorded_text_captions_can_be_drawn() -> None:
    captions = json.loads((OFFICIAL / "meta.json").read_text(encoding="utf-8"))["cond"]["captions"]
    drawn = {text_caption(2, np.random.default_rng(seed), like_reference=True) for seed in range(60)}
    assert captions["text_caption"][0] in drawn and "Text says * , * . " in drawn and len(drawn) == 6


@pytest.mark.parametrize("number", range(8))
def test_centres_beside_half_a_pixel(number: int) -> None:
    case = RECORDED["halves"][number]
    assert np.array_equal(_page(case["text"], case["polygon"], case["color"]), _bits(f"halves/{number}"))


@pytest.mark.parametrize("quarters", [-2, -1, 1])
def test_the_page_does_not_depend_on_how_a_version_of_opencv_names_a_rectangle(
    monkeypatch: pytest.MonkeyPatch, quarters: int
) -> None:
    polygons = [[(230, 153), (455, 283), (430, 327), (205, 197)], [(60, 60), (260, 60), (260, 120), (60, 120)]]
    pages = [_page("Rotated", polygon, None) for polygon in polygons]
    original = cv2.minAreaRect

    def turned(points: Any) -> Any:
        center, (width, height), angle = original(points)
        return center, (width, height) if quarters % 2 == 0 else (height, width), angle + 90 * quarters

    monkeypatch.setattr(cv2, "minAreaRect", turned)
    for polygon, page in zip(polygons, pages, strict=True):
        assert page.sum() > 0 and np.array_equal(_page("Rotated", polygon, None), page)


def test_what_the_reference_does_not_draw() -> None:
    flat = [(10, 10), (200, 10), (200, 11), (10, 11)]
    assert not _page("Thin", flat, None).any() and not _page(" ", [(9, 9), (90, 9), (90, 90), (9, 90)], None).any()
    assert reference_render.glyph_line_bitmap("  ", FONTS.default) is render.EMPTY_BITMAP
    assert reference_render.is_column(np.float32([(10, 10), (50, 10), (50, 50), (10, 50)])), "a square is a column"
    assert not reference_render.is_column(np.float32([(10, 10), (51, 10), (51, 50), (10, 50)]))


def test_dark_colours_leave_less_ink() -> None:
    polygon = [(10, 10), (200, 10), (200, 60), (10, 60)]
    white, unknown, black = (_page("Open", polygon, color) for color in ((255, 255, 255), None, (0, 0, 0)))
    assert np.array_equal(white, unknown) and (black <= white).all() and black.sum() < white.sum()


def test_a_pillow_without_raqm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ValueError, match=r"data\.options\.like_reference: true needs Pillow's raqm") as error:
        AnyWordDataset([], OPTIONS, 0, FONTS)
    assert "\n" not in str(error.value)
    AnyWordDataset([], DatasetConfig(), 0, FONTS)
