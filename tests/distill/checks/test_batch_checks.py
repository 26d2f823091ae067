"""The audit of a batch: real ones pass; every planted fault is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anytext2.core.batch import Batch, collate
from anytext2.data.dataset import AnyWordDataset
from distill.checks.batch_checks import Finding, check_batch, check_samples
from distill.checks.model_checks import FirstBatchError, require_sound
from tests.helpers.audited import drawn_dataset, lined_batch, said


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnyWordDataset:
    return drawn_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def batch(dataset: AnyWordDataset) -> Batch:
    return lined_batch(dataset)


def test_real_batches_pass(dataset: AnyWordDataset) -> None:
    for epoch in range(3):
        assert check_batch(collate([dataset.sample(i, epoch) for i in range(len(dataset))]).normalized()) == []


def test_a_page_without_ink_names_the_size_of_its_letters_and_what_would_help(batch: Batch) -> None:
    side = batch.image.shape[-1]
    flat = [[np.array([[4, 4], [60, 4], [60, 13], [4, 13]], np.float32)] * len(p) for p in batch.polygons]
    (small,) = [f for f in check_batch(_no_ink(replace(batch, polygons=flat))) if "no ink" in f.message][:1]
    remedy = "raise data.options.resolution or lower data.options.ink_threshold"
    assert small.message.endswith(f"letters are 9 px high at {side} px; {remedy}")
    (large,) = [f for f in check_batch(_no_ink(batch)) if "no ink" in f.message][:1]
    assert large.message.endswith("launch/check_dataset.py lists the characters that no font in fonts/ has")


def test_text_from_top_to_bottom_may_leave_its_box_like_the_reference(batch: Batch) -> None:
    column = np.array([(4, 4), (24, 4), (24, 100), (4, 100)], np.float32)
    polygons = ((column,), *batch.polygons[1:])
    glyph = _changed(batch.glyph, (0, 0, slice(110, 120), slice(8, 20)), 1)
    lower = replace(batch, polygons=polygons, glyph=glyph)
    assert any(found.check == "glyph page" and "outside" in found.message for found in check_batch(lower))
    assert not any("outside the text boxes" in found.message for found in check_batch(lower, like_reference=True))
    row = (np.array([(4, 4), (100, 4), (100, 24), (4, 24)], np.float32),)
    found = check_batch(replace(lower, polygons=(row, *polygons[1:])), like_reference=True)
    assert any("outside the text boxes" in finding.message for finding in found)


def _changed(tensor: torch.Tensor, at: Any, value: Any) -> torch.Tensor:
    copy = tensor.clone()
    copy[at] = value
    return copy


def _white_page(b: Batch) -> Batch:
    return replace(b, glyph=1 - b.glyph)


def _grey_page(b: Batch) -> Batch:
    """Drawn on white and averaged over the channels, as the forerunner did: nothing is zero."""
    return replace(b, glyph=0.35 + 0.65 * (1 - b.glyph.float()))


def _ink_elsewhere(b: Batch) -> Batch:
    clean = b.glyph.clone()
    clean[1] = 0
    free = b.position[1].amax(dim=0) == 0
    rows, columns = free.nonzero(as_tuple=True)
    clean[1, 0, rows[:200], columns[:200]] = 1
    return replace(b, glyph=clean)


def _no_ink(b: Batch) -> Batch:
    return replace(b, glyph=torch.zeros_like(b.glyph))


def _faint_lines(b: Batch) -> Batch:
    """A 1-bit picture divided by 255."""
    return replace(b, glyph_line=b.glyph_line.float() / 255)


def _empty_line(b: Batch) -> Batch:
    return replace(b, glyph_line=_changed(b.glyph_line, (0, 1), 0))


def _inverted_line(b: Batch) -> Batch:
    return replace(b, glyph_line=_changed(b.glyph_line, (0, 0), 1 - b.glyph_line[0, 0]))


def _ink_in_padding(b: Batch) -> Batch:
    return replace(b, glyph_line=_changed(b.glyph_line, (0, -1, 0, 0), 1))


def _joined_placeholders(b: Batch) -> Batch:
    return replace(b, text_caption=("Text says " + ", ".join("*" * b.n_lines[0]) + " .", b.text_caption[1]))


def _too_long_caption(b: Batch) -> Batch:
    return replace(b, text_caption=(b.text_caption[0], "word " * 74 + b.text_caption[1]))


def _star_in_image_caption(b: Batch) -> Batch:
    return replace(b, image_caption=("a * poster", b.image_caption[1]))


def _grey_colors(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (1, 0), 0.5))


def _colors_over_255(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (1, 0, 2), 256.0))


def _partly_unset_color(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (1, 0), torch.tensor([500.0, 20.0, 20.0])))


def _negative_color(b: Batch) -> Batch:
    return replace(b, color=_changed(b.color, (0, 0, 0), -1.0))


def _image_of_255(b: Batch) -> Batch:
    return replace(b, image=(b.image + 1) * 127.5)


def _nan_image(b: Batch) -> Batch:
    return replace(b, image=_changed(b.image, (0, 0, 5, 5), float("nan")))


def _masked_out_of_range(b: Batch) -> Batch:
    return replace(b, masked_image=b.masked_image - 10 * b.position.amax(dim=1, keepdim=True))


def _black_not_minus_one(b: Batch) -> Batch:
    return replace(b, masked_image=_changed(b.masked_image, 1, 0.0))


def _mask_moved(b: Batch) -> Batch:
    return replace(b, masked_image=b.masked_image.roll(20, dims=-1))


def _position_of_255(b: Batch) -> Batch:
    return replace(b, position=b.position * 255)


def _positions_swapped(b: Batch) -> Batch:
    return replace(b, position=_changed(b.position, 1, b.position[1].roll(1, dims=0)))


def _text_lost(b: Batch) -> Batch:
    return replace(b, texts=(b.texts[0][:-1], b.texts[1]))


@pytest.mark.parametrize(
    ("plant", "check", "message"),
    [
        (_white_page, "glyph page", "% of the glyph page, the text boxes "),
        (_grey_page, "glyph page", "ink covers 100.0% of the glyph page"),
        (_grey_page, "mask range", "glyph is not in {0, 1}: values from 0.35 to 1"),
        (_ink_elsewhere, "glyph page", "of the ink lies outside the text boxes"),
        (_no_ink, "glyph page", "no ink, although the texts are"),
        (_faint_lines, "glyph line", "not in {0, 1}: values from 0 to 0.00392157"),
        (_empty_line, "glyph line", "line 2: empty, although the text is"),
        (_inverted_line, "glyph line", "white instead of white on black"),
        (_ink_in_padding, "glyph line", "has ink, but the sample has"),
        (_joined_placeholders, "placeholders", "has fewer placeholders after tokenisation"),
        (_too_long_caption, "placeholders", "has fewer placeholders after tokenisation"),
        (_star_in_image_caption, "placeholders", "image caption 'a * poster' holds a '*'"),
        (_grey_colors, "color", "[0.5, 0.5, 0.5] is not a colour of 0 to 255"),
        (_colors_over_255, "color", "is neither within 0 to 255 nor 500"),
        (_partly_unset_color, "color", "[500.0, 20.0, 20.0] is neither"),
        (_negative_color, "color", "is neither within 0 to 255 nor 500"),
        (_image_of_255, "image range", "image spans"),
        (_nan_image, "image range", "image holds values that are not finite"),
        (_masked_out_of_range, "image range", "masked_image spans -11"),
        (_black_not_minus_one, "masked image", "not constant -1 although nothing is edited"),
        (_mask_moved, "masked image", "differs from the image outside the text positions"),
        (_position_of_255, "mask range", "position is not in {0, 1}"),
        (_positions_swapped, "position", "of it lies in the line's own polygon"),
        (_text_lost, "lines", "n_lines is"),
    ],
)
def test_planted_fault_in_a_batch_is_found(
    batch: Batch, plant: Callable[[Batch], Batch], check: str, message: str
) -> None:
    assert check_batch(batch) == []
    findings = [finding for finding in check_batch(plant(batch)) if finding.check == check]
    assert any(message in str(finding) for finding in findings), said(check_batch(plant(batch)))
    with pytest.raises(FirstBatchError, match="^audit: ") as error:
        require_sound(findings)
    assert "\n" not in str(error.value) and any(name in str(error.value) for name in batch.name)


def test_a_batch_without_any_text_is_not_sound(dataset: AnyWordDataset, batch: Batch) -> None:
    """A picture without text is: AnyText2 gives it one blank line."""
    records = [replace(dataset.records[n], lines=()) for n in range(2)]
    blank = AnyWordDataset(records, dataset.config, 0, dataset.fonts)
    empty = collate([blank.sample(n, 0) for n in range(2)]).normalized()
    assert check_samples(empty) == []
    assert said(check_batch(empty)).startswith(f"texts: {empty.name[0]}, {empty.name[1]}: no sample has a line of text")
    assert check_batch(collate([blank.sample(0, 0), dataset.sample(1, 0)]).normalized()) == []


def test_require_counts_the_others() -> None:
    require_sound([])
    with pytest.raises(FirstBatchError, match=r"^audit: a: b: c \(and 1 more\)$"):
        require_sound([Finding("a", "b", "c"), Finding("d", "e", "f")])
    assert issubclass(FirstBatchError, ValueError)


def test_audit_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    monkeypatch.chdir(tmp_path)
    check_batch(batch)
    assert not list(tmp_path.iterdir())
