"""The recogniser objective on a real, small recogniser; its CTC against a dynamic programme written out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anytext2.core.batch import Batch, collate
from anytext2.core.rng import Draws
from anytext2.glyphs import render
from anytext2.glyphs.fonts import load_font_table
from anytext2.model.recognizer import Recognizer, RecognizerConfig
from distill.losses.step_input import StepInput
from distill.objectives.recognize import Recognize, RecognizeConfig, _columns, columns_needed, contrasting_colors, ctc
from tests.helpers.models.stub_model import SCHEDULE, sample

CHARSET = ("", "A", "B", "C", " ")


@pytest.fixture
def roles(tmp_path: Path) -> Any:
    charset = tmp_path / "charset.txt"
    charset.write_text("A\nB\nC\n", encoding="utf-8")
    torch.manual_seed(0)
    config = RecognizerConfig(
        scale=0.25, neck_dims=16, neck_hidden=32, depth=1, heads=4, n_classes=5, charset=str(charset)
    )
    model = torch.nn.Module()
    model.text_predictor = Recognizer(config)
    model.train()
    model.text_predictor.eval()
    return SimpleNamespace(model=model)


def batch_of(texts: list[tuple[str, ...]]) -> Batch:
    samples = []
    for index, lines in enumerate(texts):
        plain = sample(index, n_lines=len(lines))
        ink = torch.zeros_like(plain.glyph_line)
        for line in range(len(lines)):
            ink[line, 20:60, 100 + 60 * line : 160 + 60 * line] = 1
        samples.append(replace(plain, texts=lines, glyph_line=ink))
    return collate(samples)


def item_of(texts: list[tuple[str, ...]]) -> StepInput:
    return StepInput(batch_of(texts), Draws(5, (0,) * len(texts), tuple(range(len(texts)))))


def test_ctc_equals_the_sum_over_all_paths() -> None:
    """Every path of 4 columns over {blank, A, B} that collapses to the text, added up one by one."""
    charset = ("", "A", "B", " ")
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    probabilities = logits.softmax(-1)
    plain = []
    for row, text in enumerate(("AB", "AA")):
        total = torch.zeros((), dtype=torch.float64)
        for path in itertools.product(range(4), repeat=4):
            collapsed = "".join(charset[number] for number, _ in itertools.groupby(path) if number)
            if collapsed == text:
                total = total + torch.stack([probabilities[row, at, number] for at, number in enumerate(path)]).prod()
        plain.append(-total.log() / 4)
    ours = ctc(logits, ["AB", "AA"], charset)
    torch.testing.assert_close(ours.double(), torch.stack(plain), rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (reference,) = torch.autograd.grad(torch.stack(plain).sum(), logits)
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


def test_columns_needed_counts_blanks_between_equal_neighbours() -> None:
    assert [columns_needed(text) for text in ("", "A", "AB", "AA", "AABBB")] == [0, 1, 2, 3, 8]


def test_plain_views_are_the_glyph_line_and_the_upright_crop(roles: Any) -> None:
    item = item_of([("A", "B"), ("C",)])
    views, skipped = Recognize(RecognizeConfig(recolor_prob=0, augment=0), SCHEDULE)._views(
        item.batch, item.draws, CHARSET
    )
    assert skipped == 0
    assert [(view.row, view.text) for view in views] == [(0, "A"), (1, "C"), (0, "B")] * 2
    for view in views[:3]:
        assert view.image.shape == (3, 48, 320)
        # 512 x 80 becomes 308 x 48, white ink is +1, paper -1, and the padding to 320 is 0
        assert view.image[:, :, 308:].abs().max() == 0
        assert view.image[:, :, :308].max() == 1 and view.image[:, :, :308].min() == -1
    line = views[3]
    box = item.batch.image[0, :, 2:10, 4:28]
    assert line.image[:, :, :144].mean() == pytest.approx(box.mean().item(), abs=0.05)
    assert line.image[:, :, 144:].abs().max() == 0, "24 x 8 pixels become 144 x 48"


def without_repeats(text: str) -> str:
    return "".join(char for char, _ in itertools.groupby(text))


def test_random_lines_are_drawn_from_all_characters_and_fill_the_line(roles: Any) -> None:
    item = item_of([("A", "B")] * 20)
    config = RecognizeConfig(random_text=0.5, photo_weight=0.0, recolor_prob=0, augment=0, align_weight=1.0)
    views, skipped = Recognize(config, SCHEDULE)._views(item.batch, item.draws, CHARSET)
    drawn = [view for view in views if len(view.text) == 6]
    assert skipped == 0 and 10 < len(drawn) < 30 and {view.text for view in views if len(view.text) != 6} == {"A", "B"}
    assert set("".join(view.text for view in drawn)) == {"A", "B", "C"} and len({view.text for view in drawn}) > 5
    font = load_font_table().default
    for view in drawn:
        assert view.ink is not None and np.array_equal(view.ink.numpy(), render.glyph_line(view.text, font))
    for view, columns in zip(views, _columns(views, CHARSET), strict=True):
        assert columns is not None
        read = "".join(CHARSET[number] for number in columns.tolist())
        assert without_repeats(read) == without_repeats(view.text)
    again, _ = Recognize(config, SCHEDULE)._views(item.batch, item.draws, CHARSET)
    assert [view.text for view in again] == [view.text for view in views]


def test_augmentation_stays_inside_the_line_and_in_range(roles: Any) -> None:
    item = item_of([("A",), ("B",), ("C",)])
    views, _ = Recognize(RecognizeConfig(recolor_prob=1.0), SCHEDULE)._views(item.batch, item.draws, CHARSET)
    plain, _ = Recognize(RecognizeConfig(recolor_prob=0.0, augment=0.0), SCHEDULE)._views(
        item.batch, item.draws, CHARSET
    )
    for view, original in zip(views, plain, strict=True):
        assert view.image.abs().max() <= 1
        padding = original.image.abs().amax((0, 1)) == 0
        assert padding.any() and view.image[:, :, padding].abs().max() == 0
        assert (view.image - original.image).abs().max() > 0.05


def test_colours_can_be_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        paper, ink = contrasting_colors(torch.rand(6, generator=generator))
        assert (paper.mean() - ink.mean()).abs() >= 0.25 - 1e-6
        assert min(paper.min(), ink.min()) >= 0 and max(paper.max(), ink.max()) <= 1


def test_samples_weigh_equally_whatever_their_number_of_lines(roles: Any) -> None:
    item = item_of([("A", "B"), ("C",)])
    roles.model.eval()
    objective = Recognize(RecognizeConfig(glyph_weight=1.0, photo_weight=3.0), SCHEDULE)
    output = objective.loss(roles, item)
    views, _ = objective._views(item.batch, item.draws, CHARSET)
    logits = roles.model.text_predictor(torch.stack([view.image for view in views])).logits
    values = ctc(logits, [view.text for view in views], CHARSET)
    first = (values[0] + values[2] + 3 * values[3] + 3 * values[5]) / 8
    second = (values[1] + 3 * values[4]) / 4
    torch.testing.assert_close(output.per_sample, torch.stack([first, second]))
    torch.testing.assert_close(output.loss, (first + second) / 2)


def test_blank_and_overlong_lines_are_counted_not_read(roles: Any) -> None:
    item = item_of([("A", " "), ("A" * 30,)])
    output = Recognize(RecognizeConfig(), SCHEDULE).loss(roles, item)
    assert output.report["lines"].item() == 2 and output.report["lines_skipped"].item() == 4
    assert output.per_sample[1].item() == 0 and output.loss.isfinite()


def test_a_batch_without_text_has_a_loss_of_zero_that_can_be_differentiated(roles: Any) -> None:
    output = Recognize(RecognizeConfig(), SCHEDULE).loss(roles, item_of([(), ()]))
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(parameter.grad is not None for parameter in roles.model.text_predictor.parameters())


def test_training_reaches_every_weight_and_the_batch_statistics(roles: Any) -> None:
    recognizer = roles.model.text_predictor
    before = recognizer.backbone.conv1._batch_norm.running_mean.clone()
    Recognize(RecognizeConfig(), SCHEDULE).loss(roles, item_of([("A", "B"), ("C",)])).loss.backward()
    assert not torch.equal(recognizer.backbone.conv1._batch_norm.running_mean, before)
    assert not recognizer.training, "left in the mode it was found in"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in recognizer.parameters())
    with torch.no_grad():
        roles.model.eval()
        before = recognizer.backbone.conv1._batch_norm.running_mean.clone()
        Recognize(RecognizeConfig(), SCHEDULE).loss(roles, item_of([("A",)]))
        assert torch.equal(recognizer.backbone.conv1._batch_norm.running_mean, before)


def test_impossible_options_are_named() -> None:
    for options, named in (({"augment": 2}, "augment = 2"), ({"recolor_prob": -1}, "recolor_prob = -1")):
        with pytest.raises(ValueError, match=named):
            RecognizeConfig(**options)
    with pytest.raises(ValueError, match="not both 0"):
        RecognizeConfig(glyph_weight=0, photo_weight=0)
