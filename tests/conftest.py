"""Shared fixtures. `anytext2` is imported first: it makes torchvision importable beside a CPU build of torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import anytext2  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LONGEST_FIRST = (
    "test_torture.py",
    "test_readme.py",
    "test_train.py",
    "test_early_end.py",
    "test_resume.py",
    "test_outages.py",
    "test_validation.py",
    "test_lora.py",
)
"""The longest files, so that no process works on one while the others have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying the file does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run_dir(tmp_path: Path, empty_store: Path) -> Path:
    """A run folder that does not exist yet, beside an empty MLflow store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path / "run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB. Tests run as root; where mounting is refused, the test fails and says so."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.fail(f"a disk that gets full cannot be made: {mounted.stderr.strip()}; run the tests as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
