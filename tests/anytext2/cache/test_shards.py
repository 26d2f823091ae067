"""A feature cache in several stores: parts of one data set, and stores of annotation files that have the same name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anytext2.cache.build import build_cache
from anytext2.cache.header import CacheHeader, CacheMismatchError, distinct_names, header_for
from anytext2.cache.shards import JoinedCaches, Shard, open_folder
from anytext2.cache.store import FeatureCache
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from tests.helpers.stored_features import CONFIG, FONTS, PICTURES, content, dataset_of

PARTS = 3


def build_part(folder: Path, dataset: AnyWordDataset, header: CacheHeader, shard: Shard) -> Path:
    path = shard.path(folder / "features.lmdb")
    part = dataset.select(shard.indices(dataset))
    build_cache(path, part, replace(header, shard=str(shard)), workers=0)
    return path


@pytest.fixture(scope="module")
def parts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, dataset, header = tmp_path_factory.mktemp("parts"), dataset_of(source), header_for(CONFIG, FONTS, [source])
    for number in range(1, PARTS + 1):
        build_part(folder, dataset, header, Shard(number, PARTS))
    return folder


@pytest.fixture(scope="module")
def same_names(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two annotation files of the same name, as AnyWord-3M has them; the second has the first three pictures only."""
    root = tmp_path_factory.mktemp("anyword")
    files = [root / folder / "data_v1.2b.json" for folder in ("laion", "wukong_1of5")]
    for number, file in enumerate(files):
        shutil.copytree(source.parent / "imgs", file.parent / "imgs")
        text = source.read_text(encoding="utf-8")
        file.write_text(text if number == 0 else text.replace("a ", "the ", 1), encoding="utf-8")
    return files


def joined(folder: Path, source: Path) -> JoinedCaches:
    return open_folder(folder, header_for(CONFIG, FONTS, [source]))


def test_the_parts_have_every_record_once_as_one_store_has_it(source: Path, store: Path, parts: Path) -> None:
    whole = content(store)
    whole.pop(b"header")
    found: dict[bytes, bytes] = {}
    for path in sorted(parts.glob("*.lmdb")):
        items = content(path)
        items.pop(b"header")
        assert len(items) > PICTURES // 8 and not found.keys() & items.keys()
        found |= items
    assert found == whole


def test_samples_of_the_parts_are_those_of_one_store(source: Path, store: Path, parts: Path) -> None:
    header = header_for(CONFIG, FONTS, [source])
    one, several = (
        AnyWordDataset(load_records(source)[0], CONFIG, 7, FONTS, cache)
        for cache in (FeatureCache.open(store, header), joined(parts, source))
    )
    cache = joined(parts, source)
    for index in range(0, PICTURES, 7):
        record = one.record(index)
        assert cache.entry(record) is not None and cache.file_size(record) == (160, 160)
        a, b = one.sample(index, 2), several.sample(index, 2)
        assert np.array_equal(a.glyph, b.glyph) and np.array_equal(a.font_hint, b.font_hint)
    assert cache.for_size((64, 64)) is cache and cache.for_size((64, 128)) is None
    assert cache.context("not stored") is None and cache.entry(replace(record, name="other.png")) is None


def test_a_part_that_is_not_there_is_named(source: Path, parts: Path, tmp_path: Path) -> None:
    for path in sorted(parts.glob("*.lmdb"))[:-1]:
        shutil.copy(path, tmp_path)
    with pytest.raises(CacheMismatchError, match="of data.json, these parts are not there: 3/3"):
        joined(tmp_path, source)
    with pytest.raises(CacheMismatchError, match="the store is part 1/3; name the folder that holds all parts"):
        FeatureCache.open(tmp_path / "features-1of3.lmdb", header_for(CONFIG, FONTS, [source]))


def test_stores_of_other_settings_and_folders_without_stores_are_refused(
    source: Path, parts: Path, tmp_path: Path
) -> None:
    with pytest.raises(CacheMismatchError, match="features-1of3.lmdb: max_chars: the store has 20, the run wants 9"):
        open_folder(parts, header_for(replace(CONFIG, max_chars=9), FONTS, [source]))
    with pytest.raises(CacheMismatchError, match="no store of data.json in 128 px"):
        open_folder(parts, header_for(replace(CONFIG, resolution=128), FONTS, [source]))
    with pytest.raises(ValueError, match="holds no feature cache"):
        joined(tmp_path, source)


def test_a_store_for_each_file_serves_runs_on_some_of_the_files(same_names: list[Path], tmp_path: Path) -> None:
    for file in same_names:
        dataset = dataset_of(file).select(np.arange(3))
        build_cache(tmp_path / f"{file.parent.name}.lmdb", dataset, header_for(CONFIG, FONTS, [file]), workers=0)
    both = open_folder(tmp_path, header_for(CONFIG, FONTS, same_names))
    assert [len(group) for group in both.groups] == [1, 1]
    assert len(open_folder(tmp_path, header_for(CONFIG, FONTS, same_names[:1])).groups) == 1
    (tmp_path / "wukong_1of5.lmdb").unlink()
    with pytest.raises(CacheMismatchError, match="no store of wukong_1of5/data_v1.2b.json"):
        open_folder(tmp_path, header_for(CONFIG, FONTS, same_names))


def test_files_of_one_name_are_told_apart_by_their_folders(same_names: list[Path]) -> None:
    header = header_for(CONFIG, FONTS, same_names)
    assert list(header.sources) == ["laion/data_v1.2b.json", "wukong_1of5/data_v1.2b.json"]
    assert len(set(header.sources.values())) == 2
    moved = replace(header, sources=dict(zip(["a.json", "b.json"], header.sources.values(), strict=True)))
    assert header.differences(moved) == [], "files are known by their content"
    only = header_for(CONFIG, FONTS, same_names[:1])
    assert header.differences(only) == ["sources: wukong_1of5/data_v1.2b.json is not the same"]
    assert distinct_names([Path("a/x.json"), Path("a/y.json")]) == ["x.json", "y.json"]
    assert distinct_names([Path("a/x.json"), Path("a/x.json")]) == ["x.json", "x.json"]
    assert distinct_names([]) == []


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", ""])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write K/N with K from 1 to N"):
        Shard.parse(text)
