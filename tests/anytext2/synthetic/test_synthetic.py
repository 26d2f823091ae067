"""The synthetic writer: reproducible, varied, legible in colour, and readable by our own reader."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import DEFAULT_FONT_TABLE, load_font_table
from anytext2.glyphs.render import fill_polygons
from anytext2.synthetic.backgrounds import BACKGROUNDS, PALETTE
from anytext2.synthetic.dataset import write_dataset
from anytext2.synthetic.options import SyntheticConfig
from anytext2.synthetic.picture import SyntheticPicture, draw_picture
from launch import make_dataset

CONFIG = SyntheticConfig()
CHARSET = set((Path(make_dataset.__file__).parents[1] / "anytext2/configs/charset_tiny.txt").read_text("utf-8"))


@pytest.fixture(scope="module")
def pictures() -> list[SyntheticPicture]:
    return [draw_picture(11, index, CONFIG) for index in range(240)]


@pytest.mark.heavy
def test_a_picture_depends_on_seed_and_index_only(pictures: list[SyntheticPicture]) -> None:
    again = draw_picture(11, 17, CONFIG)
    np.testing.assert_array_equal(again.image, pictures[17].image)
    assert again.caption == pictures[17].caption
    assert [line.text for line in again.lines] == [line.text for line in pictures[17].lines]
    assert not np.array_equal(draw_picture(12, 17, CONFIG).image, again.image)


def test_pictures_are_varied(pictures: list[SyntheticPicture]) -> None:
    assert {picture.kind for picture in pictures} == set(BACKGROUNDS)
    lines = [line for picture in pictures for line in picture.lines]
    languages = Counter(line.language for line in lines)
    assert 0.3 < languages["Chinese"] / len(lines) < 0.5
    counts = Counter(len(picture.lines) for picture in pictures)
    assert set(counts) >= {1, 2, 3} and counts[0] == 0 and counts[1] + counts[2] > 0.8 * len(pictures)
    edges = np.array([line.polygon[1] - line.polygon[0] for line in lines])
    angles = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    assert 0.3 < np.mean(np.abs(angles) < 0.01) < 0.8 and angles.min() < -8 and angles.max() > 8
    assert len({line.text for line in lines}) > 0.7 * len(lines)


def test_captions_describe_the_picture_and_not_its_words(pictures: list[SyntheticPicture]) -> None:
    for picture in pictures:
        assert "background" in picture.caption and picture.caption.isascii() and "*" not in picture.caption
        assert any(name in picture.caption for name in PALETTE)
    plain = [p for p in pictures if p.kind == "flat" and len(p.lines) == 1 and "label" not in p.caption]
    assert len(plain) > 5
    for picture in plain:
        name = picture.caption.split("plain ")[1].split(" background")[0]
        seen = np.median(picture.image.reshape(-1, 3), axis=0)
        nearest = min(PALETTE, key=lambda n: float(np.abs(seen - np.array(PALETTE[n])).max()))
        assert nearest == name


def test_lines_lie_on_the_page_apart_and_large_enough(pictures: list[SyntheticPicture]) -> None:
    for picture in pictures:
        for line in picture.lines:
            assert line.polygon.dtype == np.float32 and line.polygon.min() >= 0 and line.polygon.max() < CONFIG.size
            assert set(line.text) <= CHARSET, line.text
            height = float(np.hypot(*(line.polygon[3] - line.polygon[0])))
            assert height > (30 if line.language == "Chinese" and len(line.text) > 2 else 14)
        masks = [fill_polygons([line.polygon], picture.image.shape[:2]).astype(int) for line in picture.lines]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_the_recorded_colour_is_in_the_box_and_stands_out(pictures: list[SyntheticPicture]) -> None:
    weights = np.array([0.299, 0.587, 0.114])
    for picture in pictures:
        for line in picture.lines:
            inside = picture.image[fill_polygons([line.polygon], picture.image.shape[:2]) == 1].astype(float)
            distance = np.abs(inside - np.array(line.color)).max(1)
            assert (distance <= 12).mean() > 0.03, "strokes have the colour"
            contrast = np.abs(inside @ weights - np.array(line.color) @ weights)
            assert (contrast > 60).mean() > 0.3, "their surroundings differ in brightness"


def test_larger_pictures_hold_more_lines() -> None:
    large = [draw_picture(1, index, SyntheticConfig(size=320)) for index in range(30)]
    assert max(len(picture.lines) for picture in large) >= 4
    assert large[0].image.shape == (320, 320, 3) and large[0].image.dtype == np.uint8
    three = SyntheticConfig(size=320, line_weights=(0, 0, 1))
    drawn = sum(len(draw_picture(2, index, three).lines) for index in range(10))
    assert 27 <= drawn <= 30, "a line that finds no place is left out"


def test_the_default_font_can_be_the_only_one(tmp_path: Path) -> None:
    font = DEFAULT_FONT_TABLE.with_name("wqy-microhei.ttc")
    (tmp_path / "fonts.yaml").write_text(f"default: {font}\nlanguages: {{Latin: [{font}], Chinese: [{font}]}}\n")
    only, alone = SyntheticConfig(default_font=1.0), SyntheticConfig(fonts=str(tmp_path / "fonts.yaml"))
    for index in range(12):
        np.testing.assert_array_equal(draw_picture(5, index, only).image, draw_picture(5, index, alone).image)
    different = SyntheticConfig(default_font=0.0)
    assert any((draw_picture(5, i, only).image != draw_picture(5, i, different).image).any() for i in range(12))
    with pytest.raises(ValueError, match="default_font: 1.2 is not a fraction"):
        SyntheticConfig(default_font=1.2)


def test_written_datasets_are_read_back(tmp_path: Path) -> None:
    counts = write_dataset(tmp_path, 12, CONFIG, seed=4, first_index=100)
    records, report = load_records(tmp_path / "data.json")
    assert report.pictures == counts["pictures"] == 12 and report.lines == counts["lines"] and not report.skipped
    assert counts["Chinese"] + counts["Latin"] == counts["lines"]
    assert not list(tmp_path.glob("*.partial"))
    dataset = AnyWordDataset(records, DatasetConfig(resolution=128), 0, load_font_table())
    for index, record in enumerate(records):
        drawn = draw_picture(4, 100 + index, CONFIG)
        image = dataset.sample(index, 0).image.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image, drawn.image)  # PNG, and the channels in order
        assert record.caption == drawn.caption
        for ours, theirs in zip(record.lines, drawn.lines, strict=True):
            assert (ours.text, ours.language, ours.color) == (theirs.text, theirs.language, theirs.color)
            np.testing.assert_allclose(ours.polygon, theirs.polygon, atol=0.051)


def test_ink_lies_in_the_polygon() -> None:
    """On a plain ground, whatever differs from the ground is text and belongs to a box."""
    config = SyntheticConfig(label=0, outline=0, shadow=0)
    checked = 0
    for index in range(120):
        picture = draw_picture(6, index, config)
        if picture.kind != "flat" or "label" in picture.caption:
            continue
        ground = np.median(picture.image.reshape(-1, 3), axis=0)
        ink = (np.abs(picture.image - ground).max(2) > 24).astype(np.uint8)
        boxes = fill_polygons([line.polygon for line in picture.lines], ink.shape)
        assert ink.any() and not (ink & ~cv2.dilate(boxes, np.ones((3, 3), np.uint8))).any()
        checked += 1
    assert checked > 5


@pytest.mark.heavy
def test_workers_draw_the_same_pictures(tmp_path: Path) -> None:
    arguments = ["--count", "6", "--seed", "9", "--size", "96"]
    assert make_dataset.main(["--out", str(tmp_path / "one"), *arguments]) == 0
    assert make_dataset.main(["--out", str(tmp_path / "two"), *arguments, "--workers", "2"]) == 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two"))
    assert len(one) == 7 and one == two


def test_small_lines_with_rims_can_be_asked_for(tmp_path: Path) -> None:
    small = ["--latin-height", "20", "--chinese-height", "16", "--outline", "1", "--shadow", "0", "--default-font", "0"]
    assert make_dataset.main(["--out", str(tmp_path), "--count", "30", "--seed", "3", *small]) == 0
    drawn = json.loads((tmp_path / "data.json").read_text("utf-8"))["data_list"]
    assert all("outlined letters" in item["caption"] for item in drawn)
    polygons = [np.array(line["polygon"], float) for item in drawn for line in item["annotations"]]
    heights = [np.linalg.norm(polygon[3] - polygon[0]) for polygon in polygons]
    assert min(heights) < 30 < SyntheticConfig.latin_height[0]


def test_jpeg_and_the_json_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_dataset.main(["--out", str(tmp_path), "--count", "2", "--format", "jpg", "--first-index", "5"]) == 0
    assert "2 pictures" in capsys.readouterr().out
    content = json.loads((tmp_path / "data.json").read_text("utf-8"))
    assert content["data_root"] == "imgs"
    assert [item["img_name"] for item in content["data_list"]] == ["0000005.jpg", "0000006.jpg"]
    annotation = content["data_list"][0]["annotations"][0]
    assert set(annotation) == {"polygon", "text", "language", "color", "valid"} and annotation["valid"] is True


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--count", "0"], "count: 0"),
        (["--count", "1", "--size", "40"], "size: 40"),
        (["--count", "1", "--fonts", "no.yaml"], "no.yaml"),
        (["--count", "1", "--latin-height", "3"], "latin_height: letters of 3"),
        (["--count", "1", "--chinese-height", "60"], "use 8 to 56 at this size"),
        (["--count", "1", "--outline", "0.7", "--shadow", "0.4"], "outline: 0.7, shadow: 0.4"),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str
) -> None:
    assert make_dataset.main(["--out", str(tmp_path), *arguments]) == 2
    message = capsys.readouterr().err
    assert what in message and message.count("\n") == 1
