"""A small data set and its store, made once for all tests of the feature cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from anytext2.cache.build import build_cache
from anytext2.cache.header import header_for
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from tests.helpers.stored_features import CONFIG, FONTS, PICTURES, dataset_of


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, PICTURES, SyntheticConfig(size=160, line_weights=(1, 2, 2, 2)), seed=3)
    return folder / "data.json"


@pytest.fixture(scope="package")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "features.lmdb"
    report = build_cache(path, dataset_of(source), header_for(CONFIG, FONTS, [source]), workers=2, chunk=8)
    assert (report.stored, report.added, report.skipped.total()) == (40, 40, 0)
    assert not path.with_name(path.name + ".partial").exists() and report.bytes == path.stat().st_size
    return path
