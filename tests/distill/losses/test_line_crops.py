"""Lines cut from windows of a latent are the lines of the whole picture."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anytext2.core.batch import Batch, Sample, collate
from anytext2.core.line_crop import recognizer_sampling_grid
from anytext2.core.rng import Draws
from distill.config.schema import ModelConfig
from distill.inference.model import make_model
from distill.losses.line_crops import MARGIN, QUANTUM, choose_lines, decode_lines, inside, sample_pages
from tests.helpers import stub_roles

SIZE = (128, 192)
BOXES = (
    [[20, 50], [100, 50], [100, 66], [20, 66]],
    [[150, 8], [166, 8], [166, 90], [150, 90]],  # read after a turn
    [[30, 90], [120, 112], [117, 124], [27, 102]],
    [[2, 4], [190, 4], [190, 20], [2, 20]],
)


def sample(
    index: int, boxes: tuple[int, ...] = (0, 1, 2, 3), texts: tuple[str, ...] = ("AB", "C", "DE", "J")
) -> Sample:
    """A sample of 128 x 192 pixels with ink of noise in some of BOXES."""
    position = torch.zeros(4, *SIZE, dtype=torch.uint8)
    for line, box in enumerate(boxes):
        position[line] = torch.from_numpy(cv2.fillPoly(np.zeros(SIZE, np.uint8), [np.array(BOXES[box], np.int32)], 1))
    noise = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(index)) > 0.6
    return replace(
        stub_roles.make_sample(index, texts[: len(boxes)], max_lines=4),
        image=torch.zeros(3, *SIZE),
        position=position,
        glyph=(position.amax(0, keepdim=True) * noise).byte(),
        font_hint=torch.zeros(1, *SIZE, dtype=torch.uint8),
        inverse_mask=torch.zeros(1, *SIZE, dtype=torch.uint8),
    )


def draws(batch: Batch, epoch: int = 0, seed: int = 3) -> Draws:
    return Draws(seed, (epoch,) * batch.size, batch.index)


def plain_bilinear(image: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """[C, h, w] of the picture [C, H, W] at points [h, w, 2] (x, y), 0 outside; every pixel by its four neighbours."""
    x, y = torch.from_numpy(points).to(image.dtype).unbind(-1)
    total = torch.zeros(image.shape[0], *x.shape, dtype=image.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x.floor().long() + dx, y.floor().long() + dy
            known = (column >= 0) & (column < image.shape[2]) & (row >= 0) & (row < image.shape[1])
            share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * known
            total = total + image[:, row.clamp(0, image.shape[1] - 1), column.clamp(0, image.shape[2] - 1)] * share
    return total


@pytest.mark.parametrize("step", [1, 8])
def test_lines_equal_those_of_the_whole_picture_where_the_decoder_is_local(step: int) -> None:
    batch = collate([sample(0), sample(1, (2, 0))])
    cells = (SIZE[0] // step, SIZE[1] // step)
    latent = torch.rand(2, 3, *cells, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2.4 - 1.2
    latent.requires_grad_()

    def decode(window: torch.Tensor) -> torch.Tensor:
        return F.interpolate(window, scale_factor=float(step), mode="nearest")

    places = choose_lines(batch, draws(batch), 9, SIZE, step)
    assert sorted((place.row, place.number) for place in places) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    lines = decode_lines(latent, places, decode)
    wanted = []
    for place in places:
        quad = batch.quads[place.row][place.number]
        assert quad is not None
        points = recognizer_sampling_grid(quad, SIZE)
        assert points is not None
        crop = plain_bilinear((decode(latent[place.row : place.row + 1])[0] + 1) / 2, points).clamp(0, 1)
        wanted.append(F.pad(2 * crop - 1, (0, 320 - points.shape[1])))
    torch.testing.assert_close(lines, torch.stack(wanted))
    seeds = torch.rand(lines.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, plain = (torch.autograd.grad((x * seeds).sum(), latent)[0] for x in (lines, torch.stack(wanted)))
    torch.testing.assert_close(ours, plain)


def test_windows_have_a_margin_and_few_sizes() -> None:
    batch = collate([sample(0)])
    places = choose_lines(batch, draws(batch), 9, SIZE, 8)
    for place in places:
        window = place.window
        assert window.height % QUANTUM == 0 and window.width % QUANTUM == 0
        assert window.top >= 0 and window.left >= 0
        assert window.top + window.height <= 16 and window.left + window.width <= 24
        x, y = place.points[..., 0] / 8, place.points[..., 1] / 8
        for first, last, start, length, cells in (
            (x.min(), x.max(), window.left, window.width, 24),
            (y.min(), y.max(), window.top, window.height, 16),
        ):
            assert start <= max(0, int(first) - MARGIN) and start + length >= min(cells, int(last) + 1 + MARGIN)
    assert [(p.window.height, p.window.width) for p in places] == sorted(
        (p.window.height, p.window.width) for p in places
    )


def test_chosen_lines_depend_on_the_sample_and_the_epoch_alone() -> None:
    def chosen(batch: Batch, epoch: int) -> dict[int, set[int]]:
        places = choose_lines(batch, draws(batch, epoch), 2, SIZE, 8)
        assert len(places) == 2 * batch.size
        return {index: {p.number for p in places if p.row == row} for row, index in enumerate(batch.index)}

    both = collate([sample(0), sample(1)])
    first = chosen(both, 0)
    assert chosen(collate([sample(1)]), 0)[1] == first[1]
    assert chosen(both, 0) == first
    assert len({frozenset(chosen(both, epoch)[0]) for epoch in range(12)}) > 3


def test_pages_are_seen_in_the_same_place_at_any_scale() -> None:
    batch = collate([sample(0)])
    places = choose_lines(batch, draws(batch), 9, SIZE, 8)
    page = batch.position.amax(1, keepdim=True).double()
    for scale in (1, 2):
        shown = sample_pages(F.interpolate(page, scale_factor=float(scale), mode="bilinear"), places, SIZE)
        known = inside(places, shown).bool()
        # the polygons' edges are slanted or cut through a pixel
        assert shown[known].mean() > 0.9 and not shown[~known].any()


def test_a_line_from_a_window_is_nearly_that_of_the_picture() -> None:
    """The tiny model's own decoder: a margin of MARGIN cells leaves little of its receptive field out."""
    model = make_model(ModelConfig(), 0).eval()
    batch = collate([sample(0)])
    image = F.interpolate(torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(4)), size=SIZE) * 2 - 1
    with torch.no_grad():
        latent = model.encode(image)
        places = choose_lines(batch, draws(batch), 9, SIZE, 8)
        whole = model.decode(latent)
        windows = decode_lines(latent, places, model.decode)
        full = torch.stack(
            [F.pad(plain_bilinear(whole[0].clamp(-1, 1), p.points), (0, 320 - p.points.shape[1])) for p in places]
        )
    contrast = full[inside(places, full).expand_as(full).bool()].std()
    error = (windows - full)[inside(places, full).expand_as(full).bool()].square().mean().sqrt()
    print(f"error {error:.4f} of {contrast:.4f}")
    assert error < 0.1 * contrast
