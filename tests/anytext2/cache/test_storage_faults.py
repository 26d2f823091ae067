"""A cache build that the disk or a limit stops: one line, the partial store stays, the same command goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from functools import partial
from pathlib import Path

import lmdb
import pytest

from anytext2.cache.build import _StoreWriter, build_cache
from anytext2.cache.header import header_for
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from tests.helpers.stored_features import CONFIG, FONTS, content, dataset_of, in_child

pytestmark = pytest.mark.process


def test_a_limit_on_the_size_of_files_stops_the_build_and_it_goes_on_without(
    source: Path, store: Path, tmp_path: Path
) -> None:
    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [source])
    read, write = os.pipe()

    def build() -> None:
        limit = store.stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            build_cache(path, dataset_of(source), header, workers=1, chunk=4)
        except ValueError as error:
            os.write(write, str(error).encode())

    child = in_child(build)
    os.close(write)
    with os.fdopen(read) as told:
        line = told.read()
    os.waitpid(child, 0)
    partial_path = path.with_name("features.lmdb.partial")
    assert line == f"{partial_path}: a limit on the size of files is reached; raise it (`ulimit -f`), or build on " + (
        "another disk; what is done stays, and the same command goes on"
    )
    report = build_cache(path, dataset_of(source), header, workers=0)
    assert 4 <= report.added < 40 and content(path) == content(store)


def test_a_full_disk_stops_the_build_and_it_goes_on_when_there_is_room(
    source: Path, store: Path, small_disk: Path
) -> None:
    path, header = small_disk / "features.lmdb", header_for(CONFIG, FONTS, [source])
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - store.stat().st_size // 2))
    build = partial(build_cache, path, dataset_of(source), header, 0, max_bytes=1 << 24, chunk=4)
    for _ in range(2):  # the second time it is full when the store is opened
        with pytest.raises(ValueError, match=r"features\.lmdb\.partial: the disk is full; free .*goes on$"):
            build()
    filler.unlink()
    assert 4 <= build().added < 40 and content(path) == content(store)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lmdb.Error("mdb_txn_commit: Disk quota exceeded"), "the disk quota is used up"),
        (lmdb.Error("mdb_txn_commit: File too large"), "a limit on the size of files is reached"),
        (lmdb.DiskError("mdb_put: No space left on device"), "the disk is full"),
        (lmdb.Error("mdb_txn_commit: Input/output error"), r"cannot be written \(mdb_txn_commit: Input/output error\)"),
        (OSError(errno.EROFS, "Read-only file system", "x.lmdb"), r"cannot be written \(.*Read-only file system: 'x"),
        (lmdb.PanicError("update of meta page failed"), "cannot be written"),
        (lmdb.CorruptedError("mdb_get"), r"damaged \(mdb_get\); remove it"),
    ],
)
def test_every_fault_of_the_storage_is_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str
) -> None:
    def refuse(self: object, items: object) -> None:
        raise fault

    path, header = tmp_path / "features.lmdb", header_for(CONFIG, FONTS, [source])
    dataset = AnyWordDataset(load_records(source)[0][:2], CONFIG, 7, FONTS)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=rf"features\.lmdb\.partial: {words}") as caught,
    ):
        patch.setattr(_StoreWriter, "put", refuse)
        build_cache(path, dataset, header, workers=0)
    assert "\n" not in str(caught.value)
    assert build_cache(path, dataset, header, workers=0).added == 2


def test_a_partial_store_outlives_a_disk_that_refuses_to_open_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota can be used up when LMDB opens the file; only a file that is no store may be begun anew."""
    partial_path = tmp_path / "features.lmdb.partial"
    partial_path.write_bytes(b"records")

    def refuse(*args: object, **options: object) -> None:
        raise lmdb.Error(f"{partial_path}: Disk quota exceeded")

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(ValueError, match="the disk quota is used up"):
        build_cache(tmp_path / "features.lmdb", dataset_of(source), header_for(CONFIG, FONTS, [source]), workers=0)
    assert partial_path.read_bytes() == b"records"
