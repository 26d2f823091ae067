"""The names of metrics: sections, and the names of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.tracking.metric_names import OLD_NAMES, SECTIONS, is_varying, present_name, read_metrics, sectioned
from tests.helpers.paths import ROOT

OLD_RUN = ROOT / "tests" / "golden" / "run_before_restructuring" / "run"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss", "train/loss"),
        ("samples_per_second", "speed/samples_per_second"),
        ("loss_scale", "health/loss_scale"),
        ("tree_rss_gib", "system/tree_rss_gib"),
        ("term/focal_frequency", "train/term_focal_frequency"),
        ("optimizer/d", "train/optimizer_d"),
        ("eval/ned", "eval/ned"),
        ("student-phased-4/ned", "student-phased-4/ned"),
        ("step", "step"),
    ],
)
def test_old_names_have_one_new_name_each(old: str, new: str) -> None:
    assert present_name(old) == new and present_name(new) == new


def test_no_two_old_names_become_one() -> None:
    assert len(set(OLD_NAMES.values())) == len(OLD_NAMES) and all(n.startswith(SECTIONS) for n in OLD_NAMES.values())


def test_what_an_objective_reports_is_in_train() -> None:
    found = sectioned({"loss": 1.0, "mine": 2.0, "term/ctc": 3.0, "a/b": 4.0, "eval/ned": 5.0})
    assert found == {
        "train/loss": 1.0,
        "train/mine": 2.0,
        "train/term_ctc": 3.0,
        "train/a_b": 4.0,
        "eval/ned": 5.0,
    }


def test_a_run_of_an_earlier_version_is_read_by_the_names_of_now(tmp_path: Path) -> None:
    records = list(read_metrics(OLD_RUN))
    lines = [json.loads(line) for line in (OLD_RUN / "metrics.jsonl").read_text().splitlines()]
    assert [r["train/loss"] for r in records] == [line["loss"] for line in lines]
    assert all(name in ("time", "step") or name.startswith(SECTIONS) for record in records for name in record)
    assert list(read_metrics(tmp_path)) == []


def test_times_and_memory_vary_and_losses_do_not() -> None:
    assert all(map(is_varying, ("time", "step", "speed/samples_per_second", "system/disk_free_gib")))
    assert not any(map(is_varying, ("train/loss", "eval/ned", "health/loss_scale", "health/skipped_updates")))
