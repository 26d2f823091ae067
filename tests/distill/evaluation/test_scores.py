from __future__ import annotations

import json
import math

import numpy as np
import pytest

from distill.evaluation.accumulator import LINE_METRICS, ScoredLine
from distill.evaluation.score_table import format_scores
from distill.evaluation.scores import (
    GroupScores,
    LineScores,
    NetworkScores,
    RowScore,
    Score,
    compare_pairs,
    line_mean,
    mean_interval,
    to_json,
)

EMPTY = np.zeros(0)


def line_scores(exact_match: float | None, count: int = 10) -> dict[str, Score]:
    """exact_match: None without an OCR engine."""
    structure = Score(0.8, (0.7, 0.9), count)
    if exact_match is None:
        return {"exact_match": Score(), "ned": Score(), "structure": structure}
    read = {"exact_match": Score(exact_match, (0.7, 1.0), count), "ned": Score(0.95, (0.9, 1.0), count)}
    return {**read, "structure": structure}


def row(psnr_db: float = 21.5, exact_match: float | None = 0.9, **changes) -> RowScore:
    values = dict(
        key="student-consistency-4",
        role="student",
        sampler="consistency",
        steps=4,
        guidance=1.0,
        nfe=4,
        latent_rmse=Score(0.25, (0.2, 0.3), 5),
        seconds_per_image=0.5,
        pictures={
            "psnr_db": Score(psnr_db, (20.0, 23.0), 5),
            "background": Score(0.75, (0.7, 0.8), 5),
            "distance": Score(0.125, (0.1, 0.2), 5),
        },
        lines=LineScores(line_scores(exact_match), {}),
    )
    return RowScore(**{**values, **changes})


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
    read, truth = [["AB", "CD"], ["ab"], []], [["AB", "CX"], ["a b"], []]
    lines = [
        [ScoredLine(EMPTY, EMPTY, EMPTY, text, found) for text, found in zip(*picture, strict=True)]
        for picture in zip(truth, read, strict=True)
    ]
    exact, ned = (
        line_mean([[LINE_METRICS[name].measure(line) for line in picture] for picture in lines], 500, seed=0)
        for name in ("exact_match", "ned")
    )
    assert (exact.count, exact.value, ned.value) == (3, pytest.approx(2 / 3), pytest.approx(2.5 / 3))
    low, high = exact.interval
    assert low <= 2 / 3 <= high


def test_a_paired_comparison_sees_a_small_steady_gain():
    base = np.random.default_rng(3).uniform(0.0, 10.0, 64)
    found = compare_pairs("few", (base - 0.1).tolist(), "other", base.tolist(), 500, seed=0)
    assert (found.row, found.other, found.wins) == ("few", "other", 1.0)
    assert found.rmse_difference == pytest.approx(-0.1) and found.rmse_difference_95[1] < 0.0
    assert compare_pairs("few", [1.0, 2.0], "other", [1.0, 3.0], 10, seed=0).wins == 0.5


def test_the_table_lines_up_and_shows_what_is_missing():
    latin = {"language Latin": GroupScores(line_scores(0.75, 6))}
    teacher = row(role="teacher", sampler="ddim", steps=50, guidance=7.5, nfe=100, psnr_db=math.inf)
    text = format_scores([teacher, row(exact_match=None)], originals=LineScores(line_scores(1.0), latin))
    lines = text.splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert "originals" in lines[2] and "teacher ddim 50" in lines[3] and "same" in lines[3] and "7.5" in lines[3]
    assert "none" in lines[4] and lines[4].split()[-5:] == ["-", "-", "-", "-", "0.800"]
    assert "Latin" in lines[0] and lines[2].split()[-3:] == ["0.750", "-", "0.800"]


def test_json_holds_no_infinity():
    plain = row(psnr_db=math.inf, exact_match=None).to_json()
    assert plain["psnr_db"] is None and plain["exact_match"] is None and plain["latent_rmse_95"] == [0.2, 0.3]
    assert row().to_json()["exact_match"] == 0.9 and row().to_json()["lines"] == 10
    assert row().to_json()["structure"] == 0.8 and row().to_json()["distance"] == 0.125
    assert json.loads(json.dumps(to_json({"a": (1.0, math.nan), "b": [row()]}), allow_nan=False))["a"] == [1.0, None]


def test_the_tracker_gets_what_was_measured():
    metrics = row(psnr_db=math.inf, exact_match=None, networks=NetworkScores(clip_score=0.7)).metrics()
    names = ("latent_rmse", "background", "distance", "structure", "seconds_per_image", "clip_score")
    assert set(metrics) == {f"student-consistency-4/{name}" for name in names}
    assert row().metrics()["student-consistency-4/exact_match"] == 0.9
