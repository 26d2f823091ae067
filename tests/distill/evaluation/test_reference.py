"""A reference row that is kept gives the same evaluation without being sampled, and only where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.evaluate import EvaluationConfig, evaluate
from tests.helpers.models.stub_roles import StubRoles, make_sample

SCHEDULE = NoiseSchedule.scaled_linear()
TEXTS = (("AB",), ("CD", "EF"), ("GH",))


def section(**changes: Any) -> EvaluationConfig:
    values: dict[str, Any] = {"batch": 2, "teacher_steps": [8], "undistilled_steps": [], "student_steps": [2]}
    return EvaluationConfig(**{**values, "guidance": 2.0, "resamples": 50, "shown": 1, **changes})


def run(file: Path, config: EvaluationConfig | None = None, first: int = 0) -> tuple[Any, int]:
    """The evaluation's rows without their seconds, and how often the UNet was called."""
    roles = StubRoles()
    samples = [make_sample(first + i, texts) for i, texts in enumerate(TEXTS)]
    found = evaluate(roles, samples, SCHEDULE, config or section(), None, reference=file)
    rows = found.to_json()["rows"]
    for row in rows:
        assert row.pop("seconds_per_image") > 0
    return rows, roles.model.calls


def test_the_second_evaluation_samples_no_teacher(tmp_path: Path) -> None:
    file = tmp_path / "new" / "reference.safetensors"
    rows, calls = run(file)
    again, fewer = run(file)
    assert calls == 2 * (8 + 2) and fewer == 2 * 2, "two batches; a guided step is one call"
    assert again == rows and rows[0]["nfe"] == 16
    # the students may change, the batch size too
    other, _ = run(file, section(batch=3, student_steps=[1]))
    assert other[0] == rows[0] and other[1]["key"] == "student-consistency-1"


@pytest.mark.parametrize("change", [{"guidance": 3.0}, {"seed": 1}, {"teacher_steps": [4]}])
def test_another_teacher_row_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "reference.safetensors"
    run(file)
    with pytest.raises(ValueError, match="reference.safetensors: made of other weights, pictures or options"):
        run(file, section(**change))


def test_other_pictures_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "reference.safetensors"
    run(file)
    with pytest.raises(ValueError, match="other weights, pictures"):
        run(file, first=1)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="not a file that --reference has written"):
        run(file)
