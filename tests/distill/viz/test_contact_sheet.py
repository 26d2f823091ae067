"""The page shows every map of every sample, holds nothing but text from the data, and needs no server."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anytext2.core.batch import Batch, Sample, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from distill.viz.batch_pictures import PALETTE, draw_boxes, draw_color_square, tensor_to_image
from distill.viz.contact_sheet import OVERVIEW, contact_sheet, evenly_spaced_indices, write_html_page
from distill.viz.text import text_width, truncate_text
from launch.show_dataset import main
from tests.helpers import faulty_data as data

EVIL = "<script>alert('1')</script>\" onload='x' &amp; 招牌"


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.styles: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        self.styles += [value or "" for name, value in attributes if name == "style"]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, text: str) -> None:
        self.text += text


def evil_items() -> list[dict]:
    lines = [
        data.line("<b>Rot</b>", data.upright(8, 4, 88, 30), color=[200, 30, 40]),
        data.line("招牌", data.upright(8, 40, 88, 66), "<i>Chinese</i>"),
    ]
    return [data.item("a&b<u>.png", *lines, caption=EVIL), *data.sound_items(3)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    records, _ = load_records(data.write(tmp_path_factory.mktemp("evil"), evil_items()))
    dataset = AnyWordDataset(records, DatasetConfig(resolution=data.SIDE, max_lines=3), 0, load_font_table())
    return [dataset.sample(index, 0) for index in range(len(dataset))]


@pytest.fixture(scope="module")
def batch(samples: list[Sample]) -> Batch:
    return collate(samples).normalized()


@pytest.fixture(scope="module")
def page(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_html_page(samples, tmp_path_factory.mktemp("out") / "sheet", "a <heading>", ["facts & <figures>"])


def test_words_from_the_data_stay_words(page: Path) -> None:
    found = Page(page)
    assert not {"script", "b", "i", "u", "heading", "figures"} & set(found.tags)
    for words in (EVIL, "<b>Rot</b>", "<i>Chinese</i>", "a&b<u>.png", "a <heading>", "facts & <figures>"):
        assert words in found.text, words


def test_the_page_needs_only_its_own_folder(page: Path, batch: Batch) -> None:
    links = Page(page).links
    assert OVERVIEW in links and all((page.parent / link).is_file() and not Path(link).is_absolute() for link in links)
    linked, written = set(links), {str(path.relative_to(page.parent)) for path in page.parent.rglob("*.png")}
    assert linked == written
    assert len(written) == 1 + 6 * batch.size + sum(batch.n_lines)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz_/.0123456789") for name in written)


def test_every_sample_is_there_with_texts_colours_and_captions(page: Path, batch: Batch) -> None:
    found = Page(page)
    assert found.tags.count("article") == batch.size
    for row in range(batch.size):
        for words in (*batch.texts[row], batch.name[row], f"sample {batch.index[row]}", batch.text_caption[row]):
            assert words in found.text
    assert "background:rgb(200,30,40)" in found.styles and "colour (200, 30, 40)" in found.text
    assert found.text.count("colour not given") == 1


def test_the_pictures_are_the_maps(page: Path, batch: Batch) -> None:
    for number, map_ in ((1, batch.glyph[0]), (3, batch.font_hint[0]), (5, batch.inverse_mask[0])):
        with Image.open(page.parent / "images" / f"0000_{number}.png") as image:
            assert np.array_equal(np.asarray(image)[..., 0], map_[0].numpy() * 255)
    with Image.open(page.parent / "images" / "0000_line_2.png") as image:
        assert np.array_equal(np.asarray(image)[..., 1], batch.glyph_line[0, 1].numpy() * 255)
    with Image.open(page.parent / "images" / "0000_0.png") as image:
        assert image.size == (4 * data.SIDE, 4 * data.SIDE)


def test_half_a_surrogate_pair_does_not_stop_the_page(samples: list[Sample], tmp_path: Path) -> None:
    broken = replace(samples[0], image_caption="half: \ud83d")
    assert "half: ?" in Page(write_html_page([broken], tmp_path, "x")).text


def test_the_overview_has_a_tile_a_sample(samples: list[Sample]) -> None:
    one, two = contact_sheet(samples, columns=1), contact_sheet(samples, columns=2)
    assert two.width == 2 * one.width and two.height < one.height
    pixels = np.asarray(two)
    for color in (PALETTE[0], PALETTE[1], (200, 30, 40)):  # boxes, and the first line's told colour
        assert (pixels == np.array(color)).all(axis=2).sum() > 50


def _is_there(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Places [N, 2] of the pixels of this colour."""
    return np.argwhere((np.asarray(image) == np.array(color)).all(axis=2))


def test_numbers_of_boxes_at_the_edge_stay_in_the_picture(batch: Batch) -> None:
    """The number of a box in each corner is as large as one in the middle."""
    black = tensor_to_image(batch.image[0] * 0 - 1)
    plates, swatches = [], []
    for left, top in ((40, 40), (0, 0), (95, 0), (0, 95), (95, 95)):
        corner = np.full((4, 2), (left, top), np.float32)
        boxed = draw_boxes(black, replace(batch, polygons=((corner,), *batch.polygons[1:])), 0, 384, show_colors=True)
        swatches.append(len(_is_there(boxed, (200, 30, 40))))
        plates.append(len(_is_there(boxed, PALETTE[0])))
    assert swatches == [swatches[0]] * 5 and swatches[0] >= 8 * 8
    assert min(plates) > 0.9 * max(plates) > 60  # but for the box's own single pixel


def test_a_colour_that_is_not_told_is_crossed_out() -> None:
    told, untold = Image.new("RGB", (30, 30)), Image.new("RGB", (30, 30))
    draw_color_square(ImageDraw.Draw(told), (8, 8), 12, [0, 0, 255])
    draw_color_square(ImageDraw.Draw(untold), (8, 8), 12, [500, 500, 500])
    assert len(_is_there(told, (0, 0, 255))) == 12 * 12 and not len(_is_there(told, (200, 0, 0)))
    assert len(_is_there(untold, (200, 0, 0))) > 12


def test_long_words_are_cut_where_there_is_no_room() -> None:
    text = "a picture of a shop sign 招牌 " * 10
    for max_lines in (1, 2):
        lines = truncate_text(text, 200, max_lines)
        assert len(lines) == max_lines and lines[-1].endswith("…") and all(text_width(line) <= 200 for line in lines)
    assert truncate_text("short", 200) == ["short"]


@pytest.mark.parametrize(("total", "count", "indices"), [(10, 4, [0, 2, 5, 7]), (3, 8, [0, 1, 2]), (0, 5, [])])
def test_samples_are_spread_over_the_data(total: int, count: int, indices: list[int]) -> None:
    assert evenly_spaced_indices(total, count) == indices


# --- the command ---


def test_the_command_writes_the_page_and_counts_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data.write(tmp_path, data.faulty_items())
    out = tmp_path / "sheet"
    assert main([str(source), "--out", str(out), "--resolution", "96", "max_lines=2"]) == 0
    said = capsys.readouterr().out
    assert "15 samples at 96 px" in said and "image corrupt: 2; image missing: 1" in said
    page = Page(out / "index.html")
    assert page.tags.count("article") == 15 and "image corrupt: 2; image missing: 1" in page.text
    assert main([str(source), "--out", str(out), "--count", "3", "data.options.resolution=96"]) == 0
    assert Page(out / "index.html").tags.count("article") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.json"], "nowhere.json: annotation file does not exist"),
        (["{file}", "--count", "0"], "--count 0"),
        (["{file}", "--resolution", "100"], "resolution: 100 must be a multiple of 8"),
        (["{file}", "colour=1"], "known there: resolution"),
        (["{gone}"], "no chosen sample can be read ({'image missing': 1})"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data.write(tmp_path, data.sound_items(1))
    gone = data.write(tmp_path, [data.item("missing.png", data.line("x"))], "gone.json")
    given = [a.replace("{file}", str(file)).replace("{gone}", str(gone)) for a in arguments]
    assert main([*given, "--out", str(tmp_path / "sheet")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "sheet").exists()
