"""Pictures: every pixel where the reader expects it, faulty batches included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.core.batch import GLYPH_LINE_SIZE, UNSET_COLOR, Batch, Sample, collate
from distill.viz.batch_pictures import (
    PALETTE,
    audit_picture,
    image_grid,
    mask_to_image,
    positions_to_image,
    preview_grid,
    tensor_to_image,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _solid(color: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, color)


def _sample(index: int, n_lines: int, editing: bool, side: int = 64) -> Sample:
    position = torch.zeros(5, side, side, dtype=torch.uint8)
    position[0, 8:24, 8:56] = 1
    if n_lines == 2:
        position[1, 40:56, 8:56] = 1
    polygons = tuple(np.array([[8, y], [55, y], [55, y + 15], [8, y + 15]], np.float32) for y in (8, 40)[:n_lines])
    glyph_line = torch.zeros(5, *GLYPH_LINE_SIZE, dtype=torch.uint8)
    glyph_line[:n_lines, 20:60, 100:400] = 1
    image = torch.full((3, side, side), -0.5)
    return Sample(
        index=index,
        name=f"{index}.png",
        image=image,
        masked_image=torch.where(position.amax(0) > 0, -1.0, image) if editing else torch.full_like(image, -1),
        glyph=position.amax(0, keepdim=True),
        position=position,
        glyph_line=glyph_line,
        font_hint=torch.zeros(1, side, side, dtype=torch.uint8),
        color=torch.tensor([[10.0, 200.0, 30.0]] + [[UNSET_COLOR] * 3] * 4),
        inverse_mask=torch.zeros(1, side, side, dtype=torch.uint8),
        n_lines=n_lines,
        editing=editing,
        image_caption="a poster with a red gradient background " * 12,
        text_caption="Text says " + " , ".join("*" * n_lines) + " . ",
        texts=("Late", "森林")[:n_lines],
        languages=("Latin", "Chinese")[:n_lines],
        polygons=polygons,
    )


@pytest.fixture
def batch() -> Batch:
    return collate([_sample(3, 2, True), _sample(9, 1, False)])


def _has(image: Image.Image, color: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((np.asarray(image) == np.array(color)).all(axis=2).sum())


def test_picture_maps_minus_one_to_one_onto_bytes() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, -3.0, 7.0, float("nan")])
    shown = np.asarray(tensor_to_image(values.expand(3, 1, 6)))
    assert shown.shape == (1, 6, 3) and shown[0, :, 0].tolist() == [0, 128, 255, 0, 255, 128]
    every_byte = torch.arange(256) / 127.5 - 1
    assert np.asarray(tensor_to_image(every_byte.expand(3, 1, 256)))[0, :, 1].tolist() == list(range(256))


def test_mask_picture_shows_faint_ink_as_faint() -> None:
    mask = torch.tensor([[0.0, 1.0, 1 / 255, 2.0]])
    assert np.asarray(mask_to_image(mask))[0, :, 0].tolist() == [0, 255, 1, 255]
    assert mask_to_image(torch.ones(1, 3, 5, dtype=torch.uint8)).size == (5, 3)


def test_position_picture_gives_each_line_its_colour() -> None:
    position = torch.zeros(6, 4, 4, dtype=torch.uint8)
    position[0, 0, 0] = position[1, 1, 1] = position[5, 2, 2] = 1
    position[1:3, 3, 3] = 1
    shown = np.asarray(positions_to_image(position))
    assert tuple(shown[0, 0]) == PALETTE[0] and tuple(shown[1, 1]) == PALETTE[1] and tuple(shown[2, 2]) == PALETTE[0]
    assert tuple(shown[3, 3]) == tuple(min(a + b, 255) for a, b in zip(PALETTE[1], PALETTE[2], strict=True))
    assert tuple(shown[0, 1]) == (0, 0, 0)


def test_grid_places_cells_in_order() -> None:
    sheet = image_grid([[_solid(RED), _solid(GREEN)], [_solid(BLUE), None]], ["a", "b"], smallest=1)
    assert [_has(sheet, c) for c in (RED, GREEN, BLUE)] == [64 * 64] * 3
    pixels = np.asarray(sheet)

    def corner(color: tuple[int, int, int]) -> tuple[int, int]:
        rows, columns = np.nonzero((pixels == np.array(color)).all(axis=2))
        return int(rows.min()), int(columns.min())

    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = corner(RED), corner(GREEN), corner(BLUE)
    assert red_y == green_y < blue_y and red_x == blue_x < green_x
    assert (blue_y - red_y, green_x - red_x) == (72, 72)
    assert red_y > 16  # the labels stand above


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    checker = Image.fromarray((np.indices((50, 50)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    sheet = np.asarray(image_grid([[checker]], ["x"], smallest=192))[
        -208:-8, 8:208
    ]  # 50 * 4 pixels, without the margin
    assert (sheet.reshape(50, 4, 50, 4, 3) == np.asarray(checker)[:, None, :, None]).all()
    assert image_grid([[_solid(RED, (192, 100))]], ["x"]).width == 8 + 192 + 8


def test_pictures_of_different_sizes_share_a_grid() -> None:
    sheet = image_grid([[_solid(RED, (40, 20)), _solid(GREEN, (60, 80))]], ["a", "b"], smallest=1)
    assert (_has(sheet, RED), _has(sheet, GREEN)) == (40 * 20, 60 * 80)


def test_long_labels_make_room_and_row_labels_too() -> None:
    rows = [[_solid(RED)]]
    short, long = (
        image_grid(rows, ["a"], smallest=1),
        image_grid(rows, ["teacher 50 steps guided, 极长的标签"], smallest=1),
    )
    assert long.height > short.height and long.width == short.width
    labelled = image_grid(rows, ["a"], ["a row"], smallest=1)
    assert labelled.width > short.width and _has(labelled, RED) == 64 * 64


@pytest.mark.parametrize(
    ("rows", "labels", "row_labels"),
    [([], ["a"], []), ([[_solid(RED)]], ["a", "b"], []), ([[_solid(RED)]], ["a"], "ab")],
)
def test_a_grid_that_does_not_fit_its_labels_is_refused(rows: list, labels: list, row_labels: list) -> None:
    with pytest.raises(AssertionError):
        image_grid(rows, labels, row_labels)


def test_preview_grid_has_a_column_per_prediction(batch: Batch) -> None:
    green = torch.tensor([-1.0, 1.0, -1.0]).reshape(1, 3, 1, 1).expand(2, 3, 64, 64)
    without, with_one = preview_grid(batch, {}), preview_grid(batch, {"student 4": green})
    assert _has(with_one, GREEN) == 2 * 192 * 192 and _has(without, GREEN) == 0
    assert with_one.width - without.width == 200
    assert _has(preview_grid(batch, {"student 4": green}, max_samples=1), GREEN) == 192 * 192
    assert _has(without, PALETTE[0]) == 2 * 9 * 16 * 48 and _has(without, PALETTE[1]) == 9 * 16 * 48


def test_audit_picture_shows_boxes_glyphs_and_colours(batch: Batch) -> None:
    one = audit_picture(batch, max_samples=1)
    both = audit_picture(batch)
    assert both.width == one.width and both.height > 1.5 * one.height
    without = replace(batch, polygons=((), ()))
    assert _has(one, PALETTE[0]) > _has(audit_picture(without, max_samples=1), PALETTE[0]) + 400
    assert _has(one, PALETTE[1]) > 16 * 16 * 48  # its position, enlarged four times
    assert _has(one, (10, 200, 30)) > 300  # the square in the line's own colour
    white = audit_picture(replace(batch, glyph=torch.ones_like(batch.glyph)), max_samples=1)
    assert _has(white, (255, 255, 255)) > _has(one, (255, 255, 255)) + 20_000


def test_audit_picture_of_an_enlarged_glyph_page(batch: Batch) -> None:
    double = replace(batch, glyph=batch.glyph.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert np.array_equal(np.asarray(audit_picture(double)), np.asarray(audit_picture(batch)))


def test_a_faulty_batch_is_drawn_too(batch: Batch) -> None:
    broken = replace(
        batch,
        glyph=batch.glyph.float() * 0.3 - 5,
        glyph_line=batch.glyph_line.float() / 255,
        image=batch.image * float("nan"),
        masked_image=batch.masked_image * 100,
        color=batch.color + 1000,
        texts=(("Late",), ()),
        languages=((), ()),
        polygons=((np.array([[-50, -50], [500, 10], [30, 900]], np.float32),), ()),
    )
    assert audit_picture(broken).size == audit_picture(batch).size
