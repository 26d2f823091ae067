from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from distill.evaluation.score_table import table
from distill.evaluation.scores import (
    GroupScore,
    ImageSimilarity,
    LineScores,
    RowScore,
    StructureScore,
    TextScore,
    compare,
    mean_interval,
    psnr,
    rmse,
    row_to_plain,
    score_text,
    to_plain,
)

READ = TextScore(10, 0.9, (0.7, 1.0), 0.95, (0.9, 1.0))


def lines_of(text: TextScore | None, **groups: TextScore) -> LineScores:
    structure = StructureScore(10, 0.8, (0.7, 0.9))
    named = {f"language {name}": GroupScore(score, structure) for name, score in groups.items()}
    return LineScores(text, structure, named)


def row(psnr_db: float | None = 21.5, **changes) -> RowScore:
    values = dict(
        key="student-consistency-4",
        role="student",
        sampler="consistency",
        steps=4,
        guidance=1.0,
        nfe=4,
        latent_rmse=0.25,
        latent_rmse_95=(0.2, 0.3),
        likeness=ImageSimilarity(5, psnr_db, (20.0, 23.0), 0.75, (0.7, 0.8), 0.125, (0.1, 0.2)),
        lines=lines_of(READ),
        seconds_per_image=0.5,
    )
    return RowScore(**{**values, **changes})


def test_rmse_and_psnr_of_known_differences():
    reference = torch.zeros(2, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    other[1, 0, 0, 0] = 1.0
    assert rmse(other, reference).tolist() == pytest.approx([0.1, math.sqrt(1 / 48)])
    assert psnr(other, reference).tolist() == pytest.approx([20.0, 10 * math.log10(48)], abs=1e-5)
    assert psnr(reference, reference).tolist() == [math.inf, math.inf]


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = mean_interval(values.tolist(), None, 4000, seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.015)
    assert high == pytest.approx(values.mean() + half, abs=0.015)
    assert mean_interval(values.tolist(), None, 4000, seed=1) == (low, high)
    assert mean_interval([2.0, 2.0], None, 50, seed=0) == (2.0, 2.0)


def test_pictures_are_resampled_with_their_lines():
    # 200 pictures whose 5 lines are all right or all wrong: the interval is as wide as for 200 lines, not 1000
    hits = [5.0 if i % 2 else 0.0 for i in range(200)]
    low, high = mean_interval(hits, [5.0] * 200, 4000, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), abs=0.02)


def test_pictures_without_lines_weigh_nothing():
    assert mean_interval([1.0, 0.0], [1.0, 0.0], 200, seed=0) == (1.0, 1.0)
    assert all(math.isnan(edge) for edge in mean_interval([0.0], [0.0], 10, seed=0))


def test_text_scores_are_over_lines():
    score = score_text([["AB", "CD"], ["ab"], []], [["AB", "CX"], ["a b"], []], 500, seed=0)
    assert (score.lines, score.exact_match, score.ned) == (3, pytest.approx(2 / 3), pytest.approx(2.5 / 3))
    low, high = score.exact_match_95
    assert low <= 2 / 3 <= high


def test_a_paired_comparison_sees_a_small_steady_gain():
    base = np.random.default_rng(3).uniform(0.0, 10.0, 64)
    found = compare("few", (base - 0.1).tolist(), "other", base.tolist(), 500, seed=0)
    assert (found.row, found.other, found.wins) == ("few", "other", 1.0)
    assert found.rmse_difference == pytest.approx(-0.1) and found.rmse_difference_95[1] < 0.0
    assert compare("few", [1.0, 2.0], "other", [1.0, 3.0], 10, seed=0).wins == 0.5


def test_the_table_lines_up_and_shows_what_is_missing():
    text = table(
        [row(role="teacher", sampler="ddim", steps=50, guidance=7.5, nfe=100, psnr_db=None), row(lines=lines_of(None))],
        originals=lines_of(TextScore(10, 1.0, (1.0, 1.0), 1.0), Latin=TextScore(6, 0.75, (0.5, 1.0), 0.9)),
    )
    lines = text.splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert "originals" in lines[2] and "teacher ddim 50" in lines[3] and "same" in lines[3] and "7.5" in lines[3]
    assert "none" in lines[4] and lines[4].split()[-5:] == ["-", "-", "-", "-", "0.800"]
    assert "Latin" in lines[0] and lines[2].split()[-3:] == ["0.750", "-", "0.800"]


def test_json_holds_no_infinity():
    plain = row_to_plain(row(psnr_db=math.inf, lines=lines_of(None)))
    assert plain["psnr_db"] is None and plain["exact_match"] is None and plain["latent_rmse_95"] == [0.2, 0.3]
    assert row_to_plain(row())["exact_match"] == 0.9 and row_to_plain(row())["lines"] == 10
    assert row_to_plain(row())["structure"] == 0.8 and row_to_plain(row())["distance"] == 0.125
    assert json.loads(json.dumps(to_plain({"a": (1.0, math.nan), "b": [row()]}), allow_nan=False))["a"] == [1.0, None]
