"""Loss terms against plain float64 formulas, in value and gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anytext2.core.batch import Batch, collate
from anytext2.core.line_crop import recognizer_sampling_grid
from anytext2.model.anytext2 import AnyText2
from distill.losses.line_crops import choose_lines
from distill.losses.step_input import StepInput
from distill.losses.terms import TERMS, TermInput, terms_with_attention, terms_with_charset, terms_with_recognizer
from distill.losses.terms.attention_mass import token_groups
from distill.losses.terms.lines import decoded_lines
from distill.losses.writenet_attention import Attention, AttentionRecorder
from tests.helpers.models import stub_model
from tests.helpers.models.line_samples import SIZE, draws, line_sample, plain_bilinear
from tests.helpers.models.mini_model import mini_model

CHARACTERS = "ABCDEFGHIJ"
CELLS = (SIZE[0] // 8, SIZE[1] // 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AnyText2:
    charset: Path = tmp_path_factory.mktemp("terms") / "charset.txt"
    charset.write_text("\n".join(CHARACTERS) + "\n", encoding="utf-8")
    model = mini_model()
    model.text_predictor.cfg = replace(model.text_predictor.cfg, charset=str(charset))
    return model.requires_grad_(False)


def compared(model: AnyText2 | None, batch: Batch, difference: float = 0.3) -> TermInput:
    generator = torch.Generator().manual_seed(5)
    shape = (batch.size, 3, *CELLS)
    clean = torch.randn(shape, generator=generator, dtype=torch.float64)
    x0 = (clean + difference * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    t = torch.tensor([19, 399, 999])[: batch.size]
    roles: Any = SimpleNamespace(model=model)
    return TermInput(x0, clean, x0, clean, clean, t, stub_model.SCHEDULE, StepInput(batch, draws(batch)), roles)


def assert_same(ours: torch.Tensor, plain: torch.Tensor, of: torch.Tensor, rtol: float = 1e-7) -> None:
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=1e-12)
    seeds = torch.arange(1.0, 1 + len(ours), dtype=ours.dtype)
    gradients = [torch.autograd.grad((values * seeds).sum(), of, retain_graph=True)[0] for values in (ours, plain)]
    assert gradients[1].any()
    torch.testing.assert_close(*gradients, rtol=10 * rtol, atol=float(gradients[1].abs().max()) * rtol)


def plain_line(model: AnyText2, latent: torch.Tensor, batch: Batch, row: int, number: int) -> torch.Tensor:
    """The recogniser's input [3, 48, 320] of one line, its window worked out from the polygon's corners."""
    quad = batch.quads[row][number]
    assert quad is not None
    points = recognizer_sampling_grid(quad, SIZE)
    assert points is not None
    slices = []
    for axis, cells in ((1, CELLS[0]), (0, CELLS[1])):
        low, high = int(points[..., axis].min() // 8), int(points[..., axis].max() // 8) + 1
        length = high - low + 6
        rounded = min(4 * -(-length // 4), cells)
        start = min(max(low - 3 - (rounded - length) // 2, 0), cells - rounded)
        slices.append(slice(start, start + rounded))
    picture = model.decode(latent[row, :, slices[0], slices[1]][None])[0]
    shifted = points - np.array([8 * slices[1].start, 8 * slices[0].start])
    shown = 2 * plain_bilinear((picture + 1) / 2, shifted).clamp(0, 1) - 1
    return F.pad(shown, (0, 320 - points.shape[1]))


def chosen(batch: Batch, max_lines: int) -> list[tuple[int, int]]:
    return sorted((p.row, p.number) for p in choose_lines(batch, draws(batch), max_lines, SIZE, 8))


def mean_over_lines(values: dict[tuple[int, int], torch.Tensor], size: int) -> list[torch.Tensor]:
    rows = [[value for (row, _), value in values.items() if row == wanted] for wanted in range(size)]
    return [torch.stack(row).mean() if row else torch.zeros((), dtype=torch.float64) for row in rows]


def weighed(values: list[torch.Tensor], given: TermInput) -> torch.Tensor:
    return torch.stack([v * stub_model.ABAR[int(t)] for v, t in zip(values, given.t, strict=True)])


@pytest.mark.heavy
def test_ocr_features_equal_the_formula_in_value_and_gradient(model: AnyText2) -> None:
    batch = collate([line_sample(0), line_sample(1, (2,)), line_sample(2, ())])
    given = compared(model, batch)
    term = TERMS["ocr_features"](TERMS["ocr_features"].Config(weight=1.0))
    values = {}
    for row, number in chosen(batch, 2):
        ours, wanted = (
            model.text_predictor.features(plain_line(model, latent, batch, row, number)[None])
            for latent in (given.x0, given.clean)
        )
        values[row, number] = ((ours - wanted.detach()) ** 2).sum() / ours.numel()
    assert len(values) == 3
    result = term(given)
    assert result[2] == 0 and result.shape == (3,)
    assert_same(result, weighed(mean_over_lines(values, 3), given), given.x0)


def plain_ctc(logits: torch.Tensor, text: str) -> torch.Tensor:
    """-log P(text) by the forward algorithm over [T, K] logits."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    states = [0]
    for character in text:
        states += [1 + CHARACTERS.index(character), 0]
    alpha = [log_p[0, states[0]], log_p[0, states[1]]] + [torch.tensor(-1e30).double()] * (len(states) - 2)
    for column in log_p[1:]:
        alpha = [
            torch.logsumexp(
                torch.stack(
                    [alpha[s]]
                    + ([alpha[s - 1]] if s > 0 else [])
                    + ([alpha[s - 2]] if s > 1 and state and state != states[s - 2] else [])
                ),
                0,
            )
            + column[state]
            for s, state in enumerate(states)
        ]
    return -torch.logsumexp(torch.stack(alpha[-2:]), 0)


@pytest.mark.heavy
def test_ocr_ctc_equals_the_forward_algorithm_in_value_and_gradient(model: AnyText2) -> None:
    # a blank line, a character outside the charset, and a text that no path of 40 columns spells
    texts = ("AAB", " ", "A?", "A" * 21)
    batch = collate([line_sample(0, texts=texts), line_sample(1, (2, 1), ("CAFE", "J")), line_sample(2, (0,), ("?",))])
    given = compared(model, batch)
    term = TERMS["ocr_ctc"](TERMS["ocr_ctc"].Config(weight=1.0, max_lines=4))
    values = {
        (row, number): plain_ctc(
            model.text_predictor(plain_line(model, given.x0, batch, row, number)[None]).logits[0], t
        )
        / len(t)
        for row, number, t in ((0, 0, "AAB"), (1, 0, "CAFE"), (1, 1, "J"))
    }
    result = term(given)
    assert result[2] == 0 and (result[:2] > 0).all()
    assert_same(result, weighed(mean_over_lines(values, 3), given), given.x0)


def plain_pool(image: torch.Tensor, smallest: bool) -> torch.Tensor:
    """Extreme of each pixel [H, W] and its eight neighbours inside the picture."""
    padded = F.pad(image, (1, 1, 1, 1), value=torch.inf if smallest else -torch.inf)
    around = [padded[dy : dy + image.shape[0], dx : dx + image.shape[1]] for dy in range(3) for dx in range(3)]
    return torch.stack(around).amin(0) if smallest else torch.stack(around).amax(0)


def plain_skeleton(image: torch.Tensor, iterations: int) -> torch.Tensor:
    skeleton = torch.zeros_like(image)
    for _ in range(iterations + 1):
        eroded = plain_pool(image, True)
        skeleton = skeleton + (1 - skeleton) * (image - plain_pool(eroded, False)).clamp_min(0)
        image = eroded
    return skeleton


@pytest.mark.heavy
def test_topology_equals_the_formula_in_value_and_gradient(model: AnyText2) -> None:
    batch = collate([line_sample(0), line_sample(1, (2,)), line_sample(2, ())])
    given = compared(model, batch)
    term = TERMS["topology"](TERMS["topology"].Config(weight=1.0, max_lines=3, step_weight=False, iterations=2))
    values = {}
    for row, number in chosen(batch, 3):
        student, clean = (plain_line(model, latent, batch, row, number) for latent in (given.x0, given.clean))
        quad = batch.quads[row][number]
        assert quad is not None
        points = recognizer_sampling_grid(quad, SIZE)
        assert points is not None
        width = points.shape[1]
        student, clean = student[..., :width], clean[..., :width].detach()
        ink = plain_bilinear(batch.glyph[row].double(), points)[0]
        ground = (clean * (1 - ink)).sum((1, 2)) / (1 - ink).sum()
        way = (clean * ink).sum((1, 2)) / ink.sum() - ground
        if way.norm() < 0.1:
            values[row, number] = 0 * student.sum()
            continue
        maps = [
            torch.einsum("chw,c->hw", line - ground[:, None, None], way / (way @ way)).clamp(0, 1)
            for line in (student, clean)
        ]
        maps = [F.pad(m, (0, 320 - width)) for m in maps]
        bones = [plain_skeleton(m, 2) for m in maps]
        precision = ((bones[0] * maps[1]).sum() + 1) / (bones[0].sum() + 1)
        sensitivity = ((bones[1] * maps[0]).sum() + 1) / (bones[1].sum() + 1)
        values[row, number] = 1 - 2 / (1 / precision + 1 / sensitivity)
    assert sum(bool(value > 0) for value in values.values()) >= 2
    assert_same(term(given), torch.stack(mean_over_lines(values, 3)), given.x0)


def test_a_line_whose_ink_cannot_be_seen_has_no_topology(model: AnyText2) -> None:
    batch = collate([replace(line_sample(0), glyph=torch.zeros(1, *SIZE, dtype=torch.uint8))])
    result = TERMS["topology"](TERMS["topology"].Config(weight=1.0))(compared(model, batch))
    assert result.tolist() == [0.0]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["ocr_features", "topology"])
def test_a_student_that_equals_the_picture_has_no_loss(model: AnyText2, name: str) -> None:
    given = compared(model, collate([line_sample(0), line_sample(1)]), difference=0.0)
    result = TERMS[name](TERMS[name].Config(weight=1.0, step_weight=False))(given)
    # a soft skeleton's grey pixels lie in their own map by their grey value only
    assert (result == 0).all() if name == "ocr_features" else (result < 0.8).all()


def test_lines_are_decoded_once_for_all_terms(model: AnyText2, monkeypatch: pytest.MonkeyPatch) -> None:
    given = compared(model, collate([line_sample(0, (0,))]))
    calls: list[int] = []
    decode = AnyText2.decode
    monkeypatch.setattr(AnyText2, "decode", lambda self, z: (calls.append(len(z)), decode(self, z))[1])
    for name in ("ocr_features", "ocr_ctc", "topology"):
        TERMS[name](TERMS[name].Config(weight=1.0))(given)
    assert calls == [1, 1]  # the student's and the clean latent's


def test_activation_checkpointing_changes_nothing(model: AnyText2, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([line_sample(0)])
    results = []
    for recompute in ("none", "all"):
        monkeypatch.setattr(model.control_model, "activation_checkpointing", recompute)
        given = compared(model, batch)
        lines = decoded_lines(given, 2)
        assert lines is not None
        results.append((lines.student, torch.autograd.grad(lines.student.square().sum(), given.x0)[0]))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.heavy
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_mass_equals_the_formula_in_value_and_gradient(autocast: bool) -> None:
    batch = collate([line_sample(0, (0, 2)), line_sample(1, ()), line_sample(2, (1,))])
    generator = torch.Generator().manual_seed(0)
    heads, width = 2, 8

    def attention(cells: tuple[int, int]) -> Attention:
        shapes = ((3, cells[0] * cells[1], width), (3, 77, width))
        query, key = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        return Attention(query.requires_grad_(), key.requires_grad_(), heads)

    levels = [CELLS, (CELLS[0] // 2, CELLS[1] // 2)]
    student, teacher = (tuple(attention(level) for level in levels) for _ in range(2))
    recorder = AttentionRecorder(active=True, recorded={"student": student, "teacher": teacher})
    given = replace(compared(None, batch), attention=recorder)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = TERMS["attention_mass"](TERMS["attention_mass"].Config(weight=1.0))(given)
    # START, two words, then a placeholder at every other token
    tokens = {0: [3, 5], 1: [], 2: [3]}
    groups = token_groups(batch.text_caption)
    assert [groups[row, :, :-1].nonzero()[:, 0].tolist() for row in range(3)] == list(tokens.values())
    plain = torch.zeros(3, dtype=torch.float64)
    for row, places in tokens.items():
        for (h, w), mine, other in zip(levels, student, teacher, strict=True):
            blocks = batch.position[row].amax(0).double().reshape(h, SIZE[0] // h, w, SIZE[1] // w)
            share = blocks.mean((1, 3)).flatten()
            total = torch.zeros((), dtype=torch.float64)
            for cell in share.nonzero()[:, 0].tolist():
                p, q = (plain_mass(one, row, cell, places, heads) for one in (other, mine))
                total = total + share[cell] * (p.detach() * (p.detach() / q).log()).sum()
            if places:
                plain[row] = plain[row] + total / share.sum() / len(levels)
    for one in student:
        assert_same(ours, plain, one.query)
        assert_same(ours, plain, one.key)
    assert not any(one.query.grad_fn or one.query.grad is not None for one in teacher)


def plain_mass(attention: Attention, row: int, cell: int, places: list[int], heads: int) -> torch.Tensor:
    """[L + 1] of one cell: the probability of each placeholder and of all else."""
    size = attention.query.shape[2] // heads
    mass = torch.zeros(len(places) + 1, dtype=torch.float64)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = attention.key[row, :, part] @ attention.query[row, cell, part] / size**0.5
        p = logits.exp() / logits.exp().sum()
        rest = [token for token in range(77) if token not in places]
        mass = mass + torch.stack([*(p[place] for place in places), p[rest].sum()]) / heads
    return mass


def test_terms_say_what_they_need() -> None:
    terms = {name: TERMS[name].Config(weight=1.0, after=3 * (name == "attention_mass")) for name in TERMS}
    assert terms_with_recognizer(terms) == ["ocr_features", "ocr_ctc"] and terms_with_charset(terms) == ["ocr_ctc"]
    assert terms_with_attention(terms) == terms_with_attention(terms, update=3) == ["attention_mass"]
    assert terms_with_attention(terms, update=2) == []


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("ocr_ctc", {"weight": 0.0}, "weight = 0.0: must be > 0"),
        ("ocr_features", {"weight": 1.0, "max_lines": 0}, "max_lines = 0: must be at least 1"),
        ("topology", {"weight": 1.0, "iterations": 0}, "iterations = 0: must be at least 1"),
        ("attention_mass", {"weight": 1.0, "after": -1}, "after = -1: must be at least 0"),
    ],
)
def test_impossible_options_are_named(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TERMS[name].Config(**options)
