"""`make bench` at a size of its own, which takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.bench import bench
from launch.bench.savings import SAVINGS
from tests.helpers.models.mini_model import write_mini
from tests.peers.bench import public_recipe


@pytest.mark.heavy
def test_it_measures_ours_the_peer_and_each_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*write_mini(tmp_path), "lora.rank=1")  # a larger one would weigh in so small a network
    monkeypatch.setattr(bench, "SIZES", {"mini": bench.Size(1, 64, "float32", False, overrides)})
    assert bench.main(["--repeats", "1", "--out", str(tmp_path)], {"public recipe": public_recipe}) == 0
    found = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))["sizes"]["mini"]
    steps, savings, parts = found["steps"], found["savings"], found["parts"]
    assert list(steps) == ["phased", "consistency", "consistency, online", "public recipe"]
    assert list(savings) == ["(nothing)", *SAVINGS]
    ours, peer = steps["consistency, online"], steps["public recipe"]
    assert ours["together"] < peer["together"] + peer["inputs"]
    assert ours["weight_bytes"] < peer["weight_bytes"] and ours["module_calls"] < peer["module_calls"]
    # Three calls of the UNet and two of the WriteNet beside the student's; the peer's masked picture is encoded too.
    expected = parts["student"] + 3 * parts["UNet call"] + 2 * parts["WriteNet call"] + parts["conditions"]
    assert steps["consistency"]["flops"] == pytest.approx(expected, rel=0.05)
    assert peer["flops"] == pytest.approx(expected + parts["WriteNet call"] + 2 * parts["VAE encoding"], rel=0.05)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*steps, *savings, *parts)) and "step.json" in printed
