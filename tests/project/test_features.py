"""docs/FEATURES.md has every option of drawing, and a test for each."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.request import DrawingRequest
from launch.common.parsers import parse_infer
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs" / "FEATURES.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of all rows with tests: command line, Python, reference demo, diffusers, tests."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if len(row) == 5 and row[-1] != "tests"]


def names_in(column: int) -> set[str]:
    """What stands in backticks in a column."""
    return {name for row in rows() for name in re.findall(r"`([^`]+)`", row[column])}


def test_every_row_names_tests_that_exist() -> None:
    assert len(rows()) > 35
    for row in rows():
        named = NAMED.findall(row[-1])
        assert named and NAMED.sub("", row[-1]).strip(", ") == "", row
        for file, function in named:
            assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), row[-1]


def test_every_option_of_the_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_infer(["--help"])
    given = re.findall(r"^  (?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert len(given) > 30
    assert set(given) - {"--help"} <= {name.split()[0] for name in names_in(0)}


def test_every_setting_of_the_pipeline_is_there() -> None:
    parameters = set(inspect.signature(AnyText2Pipeline.__call__).parameters) - {"self", "settings"}
    assert parameters | {field.name for field in fields(DrawingRequest)} <= names_in(1)
