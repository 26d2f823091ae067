"""Sections of a benchmark: errors, time limits, and what is written when."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.bench.gpu.sections import Section, one_line, run_sections

CPU = torch.device("cpu")


def run(path: Path, *sections: Section, seconds: float = 60.0) -> dict[str, Any]:
    run_sections(sections, {"card": {}}, path / "out" / "gpu.json", seconds, CPU)
    found: dict[str, Any] = json.loads((path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert found["card"] == {}
    return found["sections"]  # type: ignore[no-any-return]


def test_an_error_is_one_line_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(values: dict[str, Any]) -> None:
        values["first"] = 1
        raise RuntimeError("no kernel\nin /home/somebody/cache for it")

    found = run(tmp_path, Section("fails", 9, fail), Section("works", 9, lambda values: values.update(second=2)))
    assert found["fails"]["error"] == "RuntimeError: no kernel in for it" and found["fails"]["values"] == {"first": 1}
    assert found["works"]["error"] == "" and found["works"]["values"] == {"second": 2}
    assert re.fullmatch(r"fails: \d\.\d s, RuntimeError: no kernel in for it", capsys.readouterr().out.splitlines()[0])


def test_a_section_that_takes_too_long_keeps_its_rows(tmp_path: Path) -> None:
    def slow(values: dict[str, Any]) -> None:
        values["first"] = 1
        try:
            time.sleep(30)
        except Exception:  # as a compiler takes what happens inside it for its own error
            pytest.fail("the limit is no Exception")

    found = run(tmp_path, Section("slow", 1.0, slow), Section("late", 9, slow), seconds=1.5)
    assert found["slow"]["error"] == "stopped after its 1 s" and found["slow"]["values"] == {"first": 1}
    assert found["late"]["error"] == "left out: the 2 s of all sections were used up"
    assert found["slow"]["seconds"] < 5


def test_what_needs_cuda_is_left_out_elsewhere(tmp_path: Path) -> None:
    found = run(tmp_path, Section("graphs", 9, lambda _: pytest.fail("ran"), needs_cuda=True))
    assert found["graphs"]["error"] == "needs CUDA"


def test_results_are_there_as_soon_as_a_section_ends(tmp_path: Path) -> None:
    def look(values: dict[str, Any]) -> None:
        values["seen"] = list(json.loads((tmp_path / "out" / "gpu.json").read_text())["sections"])

    found = run(tmp_path, Section("first", 9, lambda _: None), Section("second", 9, look))
    assert found["second"]["values"] == {"seen": ["first"]}


def test_one_line_of_a_long_error() -> None:
    assert one_line(ValueError("a " * 500)) == "ValueError: " + ("a " * 100)[:200]
