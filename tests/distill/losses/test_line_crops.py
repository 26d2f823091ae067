"""Lines cut from windows of a latent are the lines of the whole picture."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from anytext2.core.batch import Batch, collate
from anytext2.core.line_crop import recognizer_sampling_grid
from distill.config.schema import ModelConfig
from distill.inference.model import make_model
from distill.losses.line_crops import MARGIN, QUANTUM, choose_lines, decode_lines, inside, sample_pages
from tests.helpers.models.line_samples import SIZE, draws, line_sample, plain_bilinear


@pytest.mark.parametrize("step", [1, 8])
def test_lines_equal_those_of_the_whole_picture_where_the_decoder_is_local(step: int) -> None:
    batch = collate([line_sample(0), line_sample(1, (2, 0))])
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
    batch = collate([line_sample(0)])
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

    both = collate([line_sample(0), line_sample(1)])
    first = chosen(both, 0)
    assert chosen(collate([line_sample(1)]), 0)[1] == first[1]
    assert chosen(both, 0) == first
    assert len({frozenset(chosen(both, epoch)[0]) for epoch in range(12)}) > 3


def test_pages_are_seen_in_the_same_place_at_any_scale() -> None:
    batch = collate([line_sample(0)])
    places = choose_lines(batch, draws(batch), 9, SIZE, 8)
    page = batch.position.amax(1, keepdim=True).double()
    for scale in (1, 2):
        shown = sample_pages(F.interpolate(page, scale_factor=float(scale), mode="bilinear"), places, SIZE)
        known = inside(places, shown).bool()
        # the polygons' edges are slanted or cut through a pixel
        assert shown[known].mean() > 0.9 and not shown[~known].any()


@pytest.mark.heavy
def test_a_line_from_a_window_is_nearly_that_of_the_picture() -> None:
    """The tiny model's own decoder: a margin of MARGIN cells leaves little of its receptive field out."""
    model = make_model(ModelConfig(), 0).eval()
    batch = collate([line_sample(0)])
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
