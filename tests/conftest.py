"""Shared fixtures. `anytext2` is imported first: it makes torchvision importable beside a CPU build of torch."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import anytext2  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
gc.disable()  # until the tests begin: a third of an import's time would be spent on searching what stays

LONGEST_FIRST = (
    "test_torture.py",
    "test_readme.py",
    "test_train.py",
    "test_early_end.py",
    "test_resume.py",
    "test_outages.py",
    "test_second_adapters.py",
    "test_refused_commands.py",
    "test_validation.py",
    "test_train_data.py",
    "test_faults.py",
    "test_oom_guard.py",
    "test_two_hosts.py",
    "test_old_checkpoint.py",
    "test_adapter_runs.py",
    "test_lora.py",
)
"""The longest files, so that no process works on one while the others have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported is never searched for garbage: a search takes half a second, and each end makes five
    gc.enable()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying the file does not. All workers share it."""
    from mlflow import MlflowClient

    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "empty-mlflow.db"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_suffix(".new")
            MlflowClient(f"sqlite:///{new}").search_experiments()
            new.replace(path)
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
