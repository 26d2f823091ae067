"""Samples become batches without losing or mixing anything."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from anytext2.core.batch import Batch, Conditions, Sample, collate


def _sample(index: int, n_lines: int) -> Sample:
    generator = torch.Generator().manual_seed(index)

    def binary(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)

    return Sample(
        index=index,
        name=f"{index}.png",
        image=torch.rand(3, 16, 24, generator=generator) * 2 - 1,
        masked_image=torch.full((3, 16, 24), -1.0),
        glyph=binary(1, 32, 48),
        position=binary(3, 16, 24),
        glyph_line=binary(3, 80, 512),
        font_hint=binary(1, 16, 24),
        color=torch.full((3, 3), 500.0),
        inverse_mask=binary(1, 16, 24),
        n_lines=n_lines,
        editing=index % 2 == 0,
        image_caption=f"caption {index}. ",
        text_caption="Text says * . ",
        texts=tuple("abc"[:n_lines]),
        languages=("Latin",) * n_lines,
        polygons=(np.zeros((4, 2), np.float32),) * n_lines,
    )


def test_collate_stacks_tensors_and_keeps_the_rest_in_order() -> None:
    samples = [_sample(4, 1), _sample(7, 3)]
    batch = collate(samples)
    assert {field.name for field in fields(Batch)} == {field.name for field in fields(Sample)} | {
        "quads",
        "line_index",
        "font_line",
        "context_chunks",
    }
    for field in fields(Sample):
        column = getattr(batch, field.name)
        if field.name in ("posterior", "masked_latent", "image_context"):
            assert column is None, "these samples come without what a cache holds"
            continue
        for row, sample in enumerate(samples):
            value = getattr(sample, field.name)
            same = torch.equal(column[row], value) if isinstance(value, torch.Tensor) else column[row] is value
            assert same, field.name

    assert batch.size == 2
    assert batch.n_lines == (1, 3) and batch.editing == (True, False) and batch.texts == (("a",), ("a", "b", "c"))
    assert batch.glyph.dtype == torch.uint8


def test_lines_that_say_nothing_are_not_to_be_read() -> None:
    sample = replace(_sample(4, 3), texts=("a", " ", "c"), languages=("Latin", "Latin", "Chinese"))
    (own, other) = collate([sample, _sample(7, 1)]).nonblank_lines
    assert [(line.text, line.language) for line in own] == [("a", "Latin"), ("c", "Chinese")]
    assert [line.polygon is sample.polygons[n] for line, n in zip(own, (0, 2), strict=True)] == [True, True]
    assert [line.text for line in sample.nonblank_lines] == ["a", "c"] and [line.text for line in other] == ["a"]


def test_quads_enclose_each_line_s_place_and_are_none_where_it_has_none() -> None:
    sample = _sample(1, 3)
    position = torch.zeros(sample.position.shape, dtype=torch.uint8)
    position[0, 2:9, 3:13] = 1
    position[2, 1:3, 1:3] = 1
    quads = collate([replace(sample, position=position)]).quads[0]
    assert quads[0] is not None and quads[0].tolist() == [[3, 2], [12, 2], [12, 8], [3, 8]]
    assert quads[1] is None and quads[2] is not None


def test_batch_moves_every_tensor_and_is_frozen() -> None:
    batch = collate([_sample(1, 2)])
    moved = batch.to("meta")
    tensors = [getattr(moved, f.name) for f in fields(moved) if isinstance(getattr(batch, f.name), torch.Tensor)]
    assert len(tensors) == 8 and all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.image.device.type == "cpu" and moved.texts == batch.texts
    with pytest.raises(FrozenInstanceError):
        batch.index = (2,)  # type: ignore[misc]


def test_samples_of_different_sizes_do_not_make_a_batch() -> None:
    other = _sample(1, 1)
    wider = Sample(**{**{f.name: getattr(other, f.name) for f in fields(other)}, "image": torch.zeros(3, 16, 32)})
    with pytest.raises(RuntimeError):
        collate([other, wider])


def test_conditions_map_every_tensor() -> None:
    conditions = Conditions(*(torch.full((1, n + 1), float(n)) for n in range(5)))
    doubled = conditions.map(lambda tensor: tensor * 2)
    for number, field in enumerate(fields(Conditions)):
        assert torch.equal(getattr(doubled, field.name), torch.full((1, number + 1), 2.0 * number))
        assert torch.equal(getattr(conditions, field.name), torch.full((1, number + 1), 1.0 * number))
    assert conditions.to(torch.float64).position.dtype == torch.float64


def test_floating_maps_bytes_to_minus_one_to_one_and_leaves_the_rest() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    batch = collate([replace(_sample(1, 1), image=levels, masked_image=torch.zeros(3, 16, 16, dtype=torch.uint8))])
    floating = batch.normalized()
    expected = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    torch.testing.assert_close(floating.image[0, 1].flatten().double(), expected, atol=1e-6, rtol=0)
    assert (floating.masked_image == -1).all() and batch.image.dtype == torch.uint8
    assert floating.normalized().image is floating.image
