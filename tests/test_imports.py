"""Imports run one way: launch -> distill -> anytext2; DeepSpeed and MLflow are known in one place each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"anytext2": set[str](), "distill": {"anytext2"}, "launch": {"anytext2", "distill"}}
HOUSES = set(ALLOWED) | {"tests"}
DEEPSPEED_HOME = Path("distill/engine.py")
MLFLOW_HOME = Path("distill/mlflow_sender.py")


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in `source`, function bodies and type checking blocks included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "" if node.level == 0 else package
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant))  # type: ignore[misc]


def arrows_back(source: str, path: Path) -> list[str]:
    """What `source`, at `path` in the repository, imports against the rules; one line each."""
    package = path.parts[0]
    found = []
    for line, name in imported(source, package):
        house = name.split(".")[0]
        if house in HOUSES - {package} - ALLOWED[package]:
            found.append(f"{path}:{line}: {package} must not import {name}")
        if house == "deepspeed" and path != DEEPSPEED_HOME:
            found.append(f"{path}:{line}: only {DEEPSPEED_HOME} may import {name}")
        if house == "mlflow" and path != MLFLOW_HOME:
            found.append(f"{path}:{line}: only {MLFLOW_HOME} may import {name}")
    return found


def files() -> list[Path]:
    return sorted(path.relative_to(ROOT) for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def test_no_arrow_points_back() -> None:
    assert len(files()) > 40
    assert [arrow for path in files() for arrow in arrows_back((ROOT / path).read_text("utf-8"), path)] == []


@pytest.mark.parametrize(
    ("source", "path", "words"),
    [
        ("import distill.config", "anytext2/model.py", "anytext2 must not import distill.config"),
        (
            "def f():\n    from launch.train import main",
            "distill/trainer.py",
            ":2: distill must not import launch.train",
        ),
        ("if TYPE_CHECKING:\n    from launch import train", "distill/a/b.py", "distill must not import launch"),
        ("import importlib\nimportlib.import_module('launch.train')", "distill/a.py", "must not import launch.train"),
        ("from deepspeed.utils import x", "distill/trainer.py", "only distill/engine.py"),
        ("import deepspeed", "launch/train.py", "only distill/engine.py"),
        ("def f():\n    from mlflow.entities import Metric", "distill/outbox.py", "only distill/mlflow_sender.py"),
        ("from tests.ranks import x", "launch/train.py", "launch must not import tests.ranks"),
    ],
)
def test_an_arrow_back_is_seen(source: str, path: str, words: str) -> None:
    (found,) = arrows_back(source, Path(path))
    assert words in found


def test_what_is_allowed_is_not_complained_of() -> None:
    assert arrows_back("import deepspeed\nfrom anytext2 import model\nfrom . import config", DEEPSPEED_HOME) == []
    assert arrows_back("from distill.config import Recipe\nimport anytext2", Path("launch/train.py")) == []
