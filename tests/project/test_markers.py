"""The three speeds of the suite: tests that start processes say so, and tests share code through helpers only."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.helpers.paths import ROOT

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
STARTS_PROCESSES = {
    "subprocess",
    "multiprocessing",
    "tests.helpers.processes.ranks",
    "tests.helpers.processes.slurm_jobs",
}
MARKS = ("process", "slow", "slurm", "official", "gpu")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_a_file_that_starts_processes_marks_its_tests() -> None:
    for path in TESTS:
        source = path.read_text(encoding="utf-8")
        marked = any(f"pytest.mark.{mark}" in source for mark in MARKS)
        assert marked or not imported(path) & STARTS_PROCESSES, f"{path}: no test is marked as `process`"


def test_what_tests_share_lives_in_helpers() -> None:
    for path in TESTS:
        borrowed = {name for name in imported(path) if name.startswith("tests.") and ".test_" in name}
        assert not borrowed, f"{path}: {borrowed}"
