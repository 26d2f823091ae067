"""What a request becomes for the model: the same maps as annotated data, and one line for a mistake."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.core.batch import Record, TextLine
from anytext2.data.dataset import AnyWordDataset
from anytext2.glyphs.fonts import DEFAULT_FONT_TABLE, load_font_table
from anytext2.glyphs.render import fill_polygons
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.inference.fonts import find_font
from distill.inference.places import place_from_box
from distill.inference.preparation import DrawingLimits, RequestPreparation
from distill.inference.request import DrawingRequest, Imitation

FONTS = load_font_table()
WIDE = (8, 40, 120, 88)


@pytest.fixture(scope="module")
def prepare() -> RequestPreparation:
    return RequestPreparation(load_recipe(DEFAULT_RECIPE), FONTS, 16, DrawingLimits(40, 128))


@pytest.mark.parametrize("like_reference", [False, True])
def test_a_prompt_becomes_the_sample_of_the_same_annotation(tmp_path, like_reference):
    recipe = load_recipe(DEFAULT_RECIPE, [f"data.options.like_reference={str(like_reference).lower()}"])
    prepare = RequestPreparation(recipe, FONTS, 16, DrawingLimits(40, 128))
    boxes, texts, colors = [(10, 10, 118, 58), (30, 70, 110, 120)], ("OPEN", "你好"), ((1, 2, 3), None)
    prepared = prepare(DrawingRequest(prompt='a wall "OPEN" "你好"', boxes=boxes, colors=colors))
    lines = tuple(
        TextLine(text, place_from_box(box, (128, 128)).polygon, language, color)
        for text, box, language, color in zip(texts, boxes, ("Latin", "Chinese"), colors, strict=True)
    )
    Image.new("RGB", (128, 128)).save(tmp_path / "black.png")
    record = Record(tmp_path / "black.png", "black.png", "a wall", lines)
    options = replace(prepare.recipe.data.options, mask_img_prob=0.0, font_hint_prob=0.0, max_lines=2)
    dataset = AnyWordDataset([record], options, prepare.recipe.seed, FONTS)
    expected = dataset.sample(0, 0)
    for field in fields(expected):
        ours, theirs = getattr(prepared.sample, field.name), getattr(expected, field.name)
        if field.name == "position":  # exact; a dataset changes it at random
            assert torch.equal(ours[0], torch.from_numpy(fill_polygons([lines[0].polygon], (128, 128))))
        elif isinstance(theirs, torch.Tensor):
            assert torch.equal(ours, theirs), field.name
        elif field.name == "polygons":
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        elif field.name != "name":
            assert ours == theirs, field.name
    assert prepared.warnings == () and [line.text for line in prepared.lines] == list(texts)


def test_a_shape_of_a_mask_keeps_its_pixels(prepare):
    mask, picture = np.zeros((128, 128), np.uint8), np.full((128, 128, 3), 200, np.uint8)
    cv2.circle(mask, (60, 60), 40, 255, -1)
    for image in (None, picture):
        sample = prepare(DrawingRequest(prompt='"GO"', mask=mask, image=image)).sample
        position = sample.position[0].numpy()
        assert position[mask > 0].all() and 0 <= position.sum() - (mask > 0).sum() < 20, image
    assert not sample.masked_image[:, sample.position[0].bool()].any()


def test_places_are_chosen_with_the_seed(prepare):
    first, same, other = (prepare(DrawingRequest(prompt='"GO" "UP"', seed=seed)) for seed in (1, 1, 2))
    polygons = [np.concatenate([line.polygon for line in drawing.lines]) for drawing in (first, same, other)]
    assert np.array_equal(polygons[0], polygons[1]) and not np.array_equal(polygons[0], polygons[2])


def test_a_font_by_name_is_hinted_at_and_letters_are_imitated(prepare):
    page = Image.new("RGB", (128, 128), "white")
    page.paste((0, 0, 0), (40, 50, 60, 80))
    plain, named, imitated = (
        prepare(DrawingRequest(prompt='"GO"', boxes=[WIDE], fonts=fonts))
        for fonts in ((), ("lobster",), (Imitation(page, WIDE),))
    )
    assert not plain.sample.font_hint.any() and named.sample.font_hint.any()
    assert torch.equal(plain.sample.glyph, named.sample.glyph)  # the page stays in the model's font
    batches = [drawing.batch(0, 2) for drawing in (plain, named, imitated)]
    assert not torch.equal(batches[0].font_line, batches[1].font_line)
    assert not torch.equal(batches[0].font_line, batches[2].font_line)
    assert torch.equal(batches[2].font_line[0], batches[2].font_line[1]) and batches[0].index == (0, 1)


def test_a_place_can_be_moved_to_its_text(prepare):
    given, moved = (
        prepare(DrawingRequest(prompt='"IT"', boxes=[(4, 4, 124, 120)], revise=revise)).lines[0].polygon
        for revise in (False, True)
    )
    assert np.ptp(moved, axis=0).prod() < 0.9 * np.ptp(given, axis=0).prod()


def test_small_letters_are_told_of_before_drawing(prepare):
    (warning,) = prepare(DrawingRequest(prompt='"small"', boxes=[(10, 10, 60, 30)])).warnings
    assert warning.startswith('"small": letters would be ') and "writes from 40" in warning


def test_an_edited_picture_without_words_is_emptied(prepare):
    picture = np.full((200, 300, 3), 128, np.uint8)
    prepared = prepare(DrawingRequest(prompt="a wall", image=picture, boxes=[(100, 50, 200, 90)]))
    assert prepared.sample.editing and prepared.sample.texts == (" ",) and not prepared.sample.glyph.any()
    assert "nothing is written" in prepared.warnings[0] and "the model sees" in prepared.warnings[1]
    hidden = prepared.sample.position[0].bool()
    assert not prepared.sample.masked_image[:, hidden].any() and (prepared.sample.masked_image[:, ~hidden] == 128).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": '"OPEN"', "boxes": [(100, 10, 200, 60)]}, "outside of the picture"),
        ({"prompt": '"OPEN"', "boxes": ["1,2,3"]}, "write left,top,right,bottom"),
        ({"prompt": '"A" "B"', "boxes": [WIDE]}, "places: 1 for 2 texts"),
        ({"prompt": '"ABCDEFGHIJKLMNOPQRSTU"'}, "has 21 characters, at most 20"),
        ({"prompt": '"\u200b"'}, "has nothing to draw"),
        ({"prompt": '"A" "B" "C"', "max_lines": 2}, r"3 texts in the prompt: at most 2 \(max_lines\)"),
        ({"prompt": '"OPEN"', "fonts": ["Comic Sans"]}, "font Comic Sans: neither a file nor one of wqy-microhei, Rob"),
        ({"prompt": '"OPEN"', "fonts": [str(DEFAULT_FONT_TABLE)]}, "is no font file"),
        ({"prompt": '"OPEN"', "fonts": ["Lobster", "Lobster"]}, "fonts: 2 for 1 texts"),
        (
            {"prompt": '"OPEN"', "fonts": [Imitation(np.zeros((9, 9, 3), np.uint8), (1, 1, 30, 5))]},
            "font .*: x = 30 is out",
        ),
        ({"prompt": '"OPEN"', "mask": np.zeros((128, 128), np.uint8)}, "mask: empty"),
        ({"prompt": '"OPEN"', "mask": "nowhere.png"}, "mask nowhere.png: image missing"),
        ({"prompt": '"OPEN"', "image": np.zeros((64, 64, 3), np.uint8)}, "image: say where to write in it"),
        ({"prompt": '"OPEN"', "width": 100}, "width: 100 must be a multiple of 16, such as 96"),
    ],
)
def test_mistakes_are_said_in_one_line(prepare, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(DrawingRequest(**settings))
    assert "\n" not in str(error.value)


def test_a_font_file_can_be_named():
    file = DEFAULT_FONT_TABLE.parent / "Lobster.otf"
    assert find_font(str(file), FONTS).path == Path(file)
    assert find_font("LOBSTER.OTF", FONTS) is find_font("lobster", FONTS)
