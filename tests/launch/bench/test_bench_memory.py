"""Memory by recomputation: what is counted, and the figures of the official size, which need no memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.config.recipes import find_recipe, load_recipe
from launch.bench import bench_memory, saved_memory
from launch.bench.saved_memory import RooflineMode, SavedTensors, make_student, recomputed

PRODUCTION = find_recipe(Path("rtx4090x3.yaml"))
MEASURED = {1: 4.2, 2: 5.35, 4: 7.66, 8: 12.3}
"""Peak in GiB by micro-batch, on an H200, with PyTorch's convolutions and no recomputation."""


def test_storages_are_counted_once_and_weights_not_at_all() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.GELU())
    for module, expected in ((layers, 3 * 2 * 4 * 4), (layers[2], 2 * 4 * 4)):
        saved = SavedTensors(layers)
        with saved:
            module(torch.ones(2, 4, requires_grad=True) * 1.0)
        assert saved.bytes == expected
    saved = SavedTensors(layers)
    with recomputed([layers]), saved:
        layers(torch.ones(2, 4, requires_grad=True) * 1.0)
    assert saved.bytes == 2 * 4 * 4  # the input


def test_an_operation_costs_its_arithmetic_or_its_traffic_and_a_view_nothing() -> None:
    x = torch.ones(64, 64)
    with RooflineMode() as cost:
        x.t().reshape(-1, 64, 64)
    assert cost.seconds == 0.0
    with RooflineMode() as cost:
        torch.mm(x, x)
    assert cost.flops == 2 * 64**3 and cost.seconds == pytest.approx(3 * 64 * 64 * 4 / 1.008e12)


@pytest.mark.heavy
def test_the_official_size_fits_what_was_measured_and_the_settings_save_what_they_say() -> None:
    saved = bench_memory.saved_by_setting(make_student(load_recipe(PRODUCTION), 1, 512))
    for batch, gib in MEASURED.items():
        assert bench_memory.peak(saved[bench_memory.PLAIN], batch) == pytest.approx(gib, abs=0.1)
    assert saved["none"] < 0.9 * saved[bench_memory.PLAIN]
    assert saved["selective"] < 0.72 * saved["none"] and saved["all"] < 0.1 * saved["none"]
    assert bench_memory.peak(saved["none"], 8) < 24 - 1.5 and bench_memory.peak(saved["selective"], 16) < 24 - 1.5


@pytest.mark.heavy
def test_the_command_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:  # type: ignore[type-arg]
    monkeypatch.setattr(bench_memory, "FOLDER", tmp_path)
    monkeypatch.setattr(saved_memory, "KINDS", {"feed-forward": saved_memory.KINDS["feed-forward"]})
    assert bench_memory.main(["--tiny", "--size", "64"]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())
    assert set(found["saved"]) == {bench_memory.PLAIN, "none", "selective", "all"} and found["size"] == 64
    assert "| feed-forward |" in capsys.readouterr().out
