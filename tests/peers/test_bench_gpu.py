"""`make bench-gpu` on a CPU, at a size of its own: every section that a CPU can run, the JSON and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anytext2.core.batch import Batch
from distill.compilation.graphs import GraphedCalls
from distill.compilation.setup import step_networks
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.inference.model import make_schedule
from launch.bench import bench_sampling
from launch.bench.gpu import bench_gpu, other_sections
from launch.bench.gpu.step_sections import StepSections
from launch.bench.gpu.steps import Plan, Steps
from tests.helpers.models.mini_model import write_mini
from tests.helpers.models.parity import assert_same
from tests.helpers.models.rerun import Rerun
from tests.peers.bench import public_recipe

PEERS = {"public recipe": public_recipe}
CPU = torch.device("cpu")


def mini(folder: Path) -> Plan:
    overrides = (*write_mini(folder), "lora.rank=1", "model.weights=filled")
    return Plan(overrides, 64, 2, (2, 1), (2,), sampling_batches=(1,), repeats=1, side=32)


@pytest.mark.heavy
def test_all_sections_of_a_small_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_gpu, "TINY", mini(tmp_path))
    monkeypatch.setattr(bench_sampling, "STEPS", (1, 4))
    monkeypatch.setattr(bench_sampling, "TEACHER", SamplingSpec("teacher", "ddim", 3, 7.5))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main(["--tiny", "--out", str(tmp_path)], PEERS) == 0
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    sections = results["sections"]
    errors = {name: section["error"] for name, section in sections.items()}
    assert {name for name, error in errors.items() if error != "needs CUDA"} == {
        *("card", "eager", "before", "public recipe", "sampling", "recomputation", "bfloat16")
    }, errors
    assert set(errors.values()) == {"", "needs CUDA"}
    values = {name: section["values"] for name, section in sections.items()}
    assert list(values["eager"]) == ["none, 2", "none, 1"] and list(values["before"]) == ["now", "before"]
    peers = values["public recipe"]
    assert list(peers) == ["cached, 2", "online, 2", "public recipe, 2", "public recipe, contiguous, 2"]
    assert peers["cached, 2"]["tflop_a_sample"] < peers["online, 2"]["tflop_a_sample"]
    assert peers["online, 2"]["tflop_a_sample"] < peers["public recipe, 2"]["tflop_a_sample"]
    for row in (*values["eager"].values(), *peers.values()):
        assert row["seconds"] > 0 and row["peak_gib"] is None and row["notes"] == ""
    report, printed = (tmp_path / "gpu.md").read_text(encoding="utf-8"), capsys.readouterr().out
    assert report in printed and str(tmp_path) not in report
    assert report.count("\n## ") == 2 + 1 + 5 + 1 and "| peak memory to the public recipe | <= 0.55 | | not" in report


@pytest.mark.heavy
def test_graphs_are_measured_and_leave_the_networks_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a double of CUDA's graphs, in the sections that use them."""

    def make(recipe: Any, roles: Any, _: Any) -> GraphedCalls:
        calls = GraphedCalls(Rerun(), pytest.fail, lambda: roles.active)
        calls.capture(step_networks(roles) if recipe.train.compile == "graphs" else [])
        made.append(calls)
        return calls

    made: list[GraphedCalls] = []
    monkeypatch.setattr("launch.bench.gpu.steps.make_compilation", make)
    sections = StepSections(mini(tmp_path), tmp_path, CPU, PEERS, {"float32": 1e9})
    kinds = [type(m) for m in sections.steps().roles.wrapped.modules()]
    rows: dict[str, Any] = {}
    sections.graphs(rows)
    assert [calls.count for calls in made] == [4, 4] and list(rows) == ["graphs, 2", "graphs, 1"]
    assert rows["graphs, 2"]["utilisation"] > 0.0 and rows["graphs, 2"]["dtype"] == "float32"
    assert [type(m) for m in sections.steps().roles.wrapped.modules()] == kinds


@pytest.mark.heavy
def test_captured_sampling_gives_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_sections, "CudaCapture", Rerun)
    monkeypatch.setattr(bench_sampling, "STEPS", (2,))
    monkeypatch.setattr(bench_sampling, "TEACHER", SamplingSpec("teacher", "ddim", 3, 7.5))
    steps = Steps(mini(tmp_path), torch.float32, tmp_path, CPU)
    plain = bench_sampling.rows_of(steps.roles.wrapped, steps.recipe, CPU, torch.float32)  # type: ignore[arg-type]
    batch, schedule = steps.workload(1).loaded.batch, make_schedule(steps.roles.model.cfg)
    expected = [sampled(row, batch, schedule) for row in plain]
    captured = other_sections.captured_rows(plain)
    assert [row.label for row in captured] == [f"{row.label}, captured" for row in plain]
    assert_same([sampled(row, batch, schedule) for row in captured], expected, 1e-5)
    other_sections.release_rows(plain)
    assert_same([sampled(row, batch, schedule) for row in plain], expected, 1e-5)


def sampled(row: bench_sampling.Row, batch: Batch, schedule: NoiseSchedule) -> torch.Tensor:
    inputs = SamplingPreparation(row.roles, 0, "")(batch.normalized())
    with row.context():
        (found,) = sample_batch(row.roles, inputs, [row.spec], schedule)
    return found.latent


@pytest.mark.heavy
def test_weights_are_drawn_so_that_a_step_is_finite(tmp_path: Path) -> None:
    steps = Steps(mini(tmp_path), torch.float32, tmp_path, CPU)
    assert bool(torch.isfinite(steps.workload(1).micro_step()()))


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "error: no GPU that CUDA can use is here; --tiny runs" in capsys.readouterr().err
