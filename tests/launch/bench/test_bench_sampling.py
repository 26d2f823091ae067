"""The bench of sampling: its operations, and its table of times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.diffusion.sampling import SamplingSpec
from launch.bench import bench_sampling


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sampling, "FOLDER", tmp_path)


@pytest.mark.heavy
def test_operations_of_a_picture(tmp_path: Path) -> None:
    """A 4-step student had 3,236 and a 20-step teacher 9,220 before; values were read to the host in the steps."""
    assert bench_sampling.main(["--tiny", "--count"]) == 0
    found = json.loads((tmp_path / "sampling_operations.json").read_text(encoding="utf-8"))["operations"]
    assert all(counts["reads"] == 0 for counts in found.values())
    assert found["teacher 20 guided"]["sampling"] <= 8_600
    assert found["student 4"]["sampling"] <= 3_200 and found["student 4 merged"]["sampling"] <= 2_000
    # A merged student's step is one of the bare network, as the teacher's is, which has two branches to add.
    steps = (found["student 8 merged"]["sampling"] - found["student 4 merged"]["sampling"]) / 4
    assert steps < found["teacher 20 guided"]["sampling"] / 20


@pytest.mark.heavy
def test_the_table_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_sampling, "STEPS", (1, 4))
    monkeypatch.setattr(bench_sampling, "TEACHER", SamplingSpec("teacher", "ddim", 5, 7.5))
    argv = ["--tiny", "--resolution", "64", "--batches", "1,2", "--repeats", "1", "--device", "cpu"]
    assert bench_sampling.main(argv) == 0
    found = json.loads((tmp_path / "sampling.json").read_text(encoding="utf-8"))
    labels = ["teacher 5 guided", "student 1", "student 1 merged", "student 4", "student 4 merged"]
    assert [(row["row"], row["batch"]) for row in found["timings"]] == [(name, n) for n in (1, 2) for name in labels]
    assert all(0.0 < row["conditions"] < row["total"] for row in found["timings"])
    assert found["speedups"]["teacher 5 guided, batch 2"] == 1.0 < found["speedups"]["student 1 merged, batch 1"]
    printed = capsys.readouterr().out
    assert "student 4 merged, batch 1: " in printed and "8 are wanted" in printed
    assert bench_sampling.main(["--tiny", "--device", "cuda:77"]) == 2
    assert "--device cuda:77" in capsys.readouterr().err
