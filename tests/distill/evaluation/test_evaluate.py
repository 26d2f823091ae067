from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anytext2.core.batch import TextLine, collate
from distill.diffusion.sampling import prepare_sampling, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.accumulator import line_groups
from distill.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from distill.evaluation.scores import RowScore, Score
from tests.helpers.models.stub_roles import StubRoles, make_sample

SCHEDULE = NoiseSchedule.scaled_linear()
TEXTS = (("AB",), ("CD", "EF"), (" ",), ("GH",), ("AB", "CD"))


class StubReader:
    """Reads 'AB' in every line, whatever the picture shows; does not know the letter G."""

    name = "stub"

    def __init__(self) -> None:
        self.lines = 0

    def recognize_lines(self, image: np.ndarray, polygons: list[np.ndarray]) -> list[str]:
        assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
        self.lines += len(polygons)
        return ["AB"] * len(polygons)

    def in_charset(self, text: str) -> bool:
        return "G" not in text


def section(**changes) -> EvaluationConfig:
    values = dict(
        batch=2, teacher_steps=[8, 4], undistilled_steps=[2], student_steps=[1, 2], guidance=2.0, resamples=200, shown=3
    )
    return EvaluationConfig(**{**values, **changes})


def row_of(found: Evaluation, key: str) -> RowScore:
    (row,) = (row for row in found.rows if row.key == key)
    return row


def samples() -> list:
    return [make_sample(10 + i, texts) for i, texts in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def found():
    return evaluate(StubRoles(), samples(), SCHEDULE, section(), StubReader())


def test_rows_and_their_cost(found):
    assert [(row.key, row.nfe, row.guidance) for row in found.rows] == [
        ("teacher-ddim-8", 16, 2.0),
        ("teacher-ddim-4", 8, 2.0),
        ("undistilled-ddim-2", 4, 2.0),
        ("undistilled-consistency-2", 2, 1.0),
        ("student-consistency-1", 1, 1.0),
        ("student-consistency-2", 2, 1.0),
    ]
    assert all(row.seconds_per_image > 0 for row in found.rows)
    assert (found.pictures, found.seed) == (5, 0)


def test_distances_are_to_the_first_row(found):
    assert found.rows[0].latent_rmse.value == 0.0 and found.rows[0].pictures["psnr_db"].value == math.inf
    roles = StubRoles()
    roles.model.eval()
    inputs = prepare_sampling(roles, collate(samples()), seed=0, negative_prompt="")
    reference, *others = (p.latent for p in sample_batch(roles, inputs, section().rows(), SCHEDULE))
    for row, latent in zip(found.rows[1:], others, strict=True):
        each = (latent - reference).square().mean(dim=(1, 2, 3)).sqrt()
        assert row.latent_rmse.value == pytest.approx(float(each.mean()), rel=1e-5)
        low, high = row.latent_rmse.interval
        assert low <= row.latent_rmse.value <= high and row.pictures["psnr_db"].value > 0


def test_an_undistilled_student_is_the_undistilled_model():
    found = evaluate(StubRoles(difference=0.0), samples(), SCHEDULE, section(), None)
    student, undistilled = row_of(found, "student-consistency-2"), row_of(found, "undistilled-consistency-2")
    assert student.latent_rmse.value == undistilled.latent_rmse.value and student.pictures == undistilled.pictures
    against = {(c.row, c.other): c for c in found.comparisons}
    assert set(against) == {
        ("student-consistency-2", "undistilled-ddim-2"),
        ("student-consistency-2", "undistilled-consistency-2"),
    }
    assert against["student-consistency-2", "undistilled-consistency-2"].rmse_difference == 0.0
    assert (
        found.originals.scores["ned"] == found.rows[0].lines.scores["exact_match"] == Score()
        and found.ocr_engine is None
    )


def test_results_do_not_depend_on_the_batch(found):
    other = evaluate(StubRoles(), samples(), SCHEDULE, section(batch=5), StubReader())
    for one, two in zip(found.rows, other.rows, strict=True):
        assert one.latent_rmse.value == pytest.approx(two.latent_rmse.value, rel=1e-5, abs=1e-7)
        assert one.lines == two.lines and one.pictures["distance"].value == pytest.approx(
            two.pictures["distance"].value, rel=1e-4, abs=1e-7
        )


def test_lines_are_scored_against_their_texts(found):
    reader = StubReader()
    found = evaluate(StubRoles(), samples(), SCHEDULE, section(), reader)
    assert reader.lines == 6 * 8  # six lines that hold text; originals, reconstructions and six rows
    assert (found.lines_not_scored, found.lines_beyond_charset) == (1, 1)
    for lines in (found.originals, found.reconstructions, *(row.lines for row in found.rows)):
        score = lines.scores["exact_match"]
        assert (score.count, score.value) == (6, pytest.approx(2 / 6))
        assert score.interval[0] <= 2 / 6 <= score.interval[1]


def test_the_undistilled_model_may_use_the_student_s_sampler_too():
    keys = [row.key for row in section(student_sampler="phased").rows()]
    assert keys[2:] == [
        "undistilled-ddim-2",
        "undistilled-consistency-2",
        "undistilled-phased-2",
        "student-phased-1",
        "student-phased-2",
    ]
    assert section(student_sampler="phased").rows()[4].guidance == 2.0
    assert [row.guidance for row in section(student_guidance=3.0).rows()[-2:]] == [3.0, 3.0]


def test_lines_are_scored_by_language_and_height_too(found):
    lines = found.originals
    whole = lines.scores["exact_match"]
    assert {name.split()[0] for name in lines.groups} == {"language", "height"}
    for kind in ("language", "height"):
        groups = [group.lines["exact_match"] for name, group in lines.groups.items() if name.startswith(kind)]
        assert sum(score.count for score in groups) == whole.count
        hits = sum(score.value * score.count for score in groups)
        assert hits == pytest.approx(whole.value * whole.count)


@pytest.mark.parametrize(
    ("height", "name"), [(10, "under 24"), (23.9, "under 24"), (24, "24-32"), (40, "32-48"), (200, "48 and more")]
)
def test_the_height_of_a_line_is_its_box_s(height, name):
    turned = np.array([[0, 0], [0, 300], [-height, 300], [-height, 0]], dtype=np.float32)  # a vertical column
    lying = np.array([[0, 0], [300, 0], [300, height], [0, height]], dtype=np.float32)
    for polygon in (lying, turned):
        assert line_groups(TextLine("x", polygon, "Latin", None)) == ("language Latin", f"height {name}")


def test_structure_and_distance_are_there_for_every_row(found):
    assert found.rows[0].pictures["distance"].value == 0.0 and all(
        row.pictures["distance"].value > 0 for row in found.rows[1:]
    )
    assert all(0.0 <= row.lines.scores["structure"].value <= 1.0 for row in found.rows)
    assert found.originals.scores["structure"].count == found.rows[0].lines.scores["structure"].count > 0


class Embedder(StubReader):
    """Embeds every line as the picture's mean."""

    def embed(self, image, polygons, characters):
        assert characters == sorted(set("ABCDEFGH"))
        return ["AB"] * len(polygons), np.full((len(polygons), 3), image.mean() / 255, np.float32)


def test_lines_are_compared_as_distributions_too():
    reader = Embedder()
    found = evaluate(StubRoles(), samples(), SCHEDULE, section(), reader, embedder=reader)
    assert reader.lines == 0  # an engine that does both looks once
    assert found.rows[0].lines.text_distance.value == 0.0 < found.originals.text_distance.value
    for row in found.rows[1:]:
        low, high = row.lines.text_distance.interval
        assert low <= row.lines.text_distance.value <= high
    plain = found.to_json()
    assert plain["originals"]["text_distance"] > 0 and plain["rows"][1]["text_distance"] > 0


def test_the_picture_scores_of_a_language_are_that_of_the_pictures_that_hold_it():
    mixed = [make_sample(10, ("AB",)), make_sample(11, ("CD",)), make_sample(12, ("EF", "GH"))]
    mixed[1] = replace(mixed[1], languages=("Chinese",))
    mixed[2] = replace(mixed[2], languages=("Chinese", "Latin"))
    row = evaluate(StubRoles(), mixed, SCHEDULE, section(), None).rows[1]
    whole, latin = row.pictures, row.lines.groups["language Latin"].pictures
    chinese = row.lines.groups["language Chinese"].pictures
    assert tuple(scores["distance"].count for scores in (whole, latin, chinese)) == (3, 2, 2)
    alone = evaluate(StubRoles(), [mixed[0], mixed[2]], SCHEDULE, section(), None).rows[1].pictures
    assert latin["psnr_db"].value == pytest.approx(alone["psnr_db"].value, rel=1e-5)
    assert latin["distance"].value == pytest.approx(alone["distance"].value, rel=0.02)
    assert latin["distance"].interval[0] <= latin["distance"].value <= latin["distance"].interval[1]
    assert (
        row.lines.groups["language Latin"].lines["ned"] == Score()
        and latin["psnr_db"].value != chinese["psnr_db"].value
    )


def test_the_first_pictures_are_kept_for_the_grid(found):
    assert [one.name for one in found.examples] == ["picture-10", "picture-11", "picture-12"]
    for one, sample in zip(found.examples, samples(), strict=False):
        assert np.abs(one.original / 127.5 - 1.0 - sample.image.permute(1, 2, 0).numpy()).max() < 0.01
        assert set(one.sampled) == {row.key for row in found.rows}
        assert set(one.recognized) == {"originals", *one.sampled} and one.texts == tuple(
            t for t in sample.texts if t.strip()
        )
        ink, boxes = sample.glyph[0].numpy() > 0, sample.position.amax(dim=0).numpy() > 0
        assert (one.hint[ink] == 255).all() and (one.hint[~boxes] == 0).all()
    assert not np.array_equal(
        found.examples[0].sampled["student-consistency-2"], found.examples[1].sampled["student-consistency-2"]
    )


def test_json_is_complete_and_plain(found):
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["reference"] == "teacher-ddim-8" and "examples" not in plain
    assert [row["role"] for row in plain["rows"]] == ["teacher"] * 2 + ["undistilled"] * 2 + ["student"] * 2
    wanted = {"steps", "nfe", "latent_rmse", "psnr_db", "exact_match", "exact_match_95", "ned", "seconds_per_image"}
    assert all(wanted <= set(row) for row in plain["rows"])
    assert plain["originals"]["lines"] == 6


def test_evaluation_mode_inside_and_as_before_afterwards():
    roles = StubRoles()
    roles.model.train()
    roles.model.dropout.eval()  # a part with a mode of its own
    seen: list[tuple[int, int, bool]] = []
    evaluate(
        roles,
        samples(),
        SCHEDULE,
        section(),
        None,
        progress=lambda done, total: seen.append((done, total, roles.model.training)),
    )
    assert seen == [(2, 5, False), (4, 5, False), (5, 5, False)]
    assert roles.model.training and not roles.model.dropout.training
    assert roles.model.gain.grad is None and not torch.is_inference(roles.model.gain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "evaluation.batch=0"),
        ({"teacher_steps": []}, "evaluation.teacher_steps"),
        ({"guidance": 0.5}, "row teacher-ddim-8: guidance=0.5"),
        ({"student_guidance": 0.5}, "row student-consistency-1: guidance=0.5"),
        ({"student_steps": [4, 4]}, "student_steps.*twice"),
    ],
)
def test_impossible_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        section(**change)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        evaluate(StubRoles(), [], SCHEDULE, section(), None)
