"""The measurement of the data pipeline runs and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.bench import bench_data


def test_the_measurement_writes_its_figures_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_data.main(["--out", str(tmp_path), "--count", "4", "--rounds", "1"]) == 0
    found = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    ways = {"online", "lmdb", "lmdb_latents"}
    assert all(found[name] > 0 for name in ways | {"jpeg_decode"}) and set(found["collated"]) == ways
    settings = found["settings"]
    assert (settings["rand_font"], settings["font_hint_prob"], settings["font_hint_area"]) == (True, 0.8, [0.7, 1.0])
    assert (settings["font_hint_randaug"], settings["color_prob"], settings["resolution"]) == (True, 1.0, 512)
    printed = capsys.readouterr().out
    assert all(f"{found[name]:.1f}" in printed for name in ways)
    assert bench_data.main(["--count", "1"]) == 2


@pytest.mark.heavy
def test_the_cost_of_annotations_is_measured_and_extrapolated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_data.main(["--out", str(tmp_path), "--annotations", "400"]) == 0
    found = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    assert found["items"] == 400 and 2.5 < found["lines"] / 400 < 3.5 and 100 < found["bytes_per_record"] < 500
    assert 0 < found["resident_before_mib"] <= found["peak_mib"] and found["cpu_seconds"] > 0
    full = found["extrapolated"]
    assert full["items"] == 3_000_000 and full["cpu_seconds"] == pytest.approx(7500 * found["cpu_seconds"])
    assert f"{found['bytes_per_record']} bytes a record" in capsys.readouterr().out
    assert not list((tmp_path / "annotations").iterdir()) and bench_data.main(["--annotations", "0"]) == 2
