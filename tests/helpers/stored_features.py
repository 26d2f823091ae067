"""What the tests of the feature cache share: a small data set's settings, a store's content, and a child process."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lmdb

from anytext2.cache.store import FeatureCache
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table

CONFIG = DatasetConfig(resolution=64, max_lines=2, glyph_scale=2, font_hint_randaug=False)
FONTS = load_font_table()
PICTURES = 40


def dataset_of(
    source: Path, config: DatasetConfig = CONFIG, cache: FeatureCache | None = None, latents: bool = False
) -> AnyWordDataset:
    """The data set of `source`, online or with a feature cache."""
    return AnyWordDataset(load_records(source)[0], config, 7, FONTS, cache, latents)


def content(path: Path) -> dict[bytes, bytes]:
    """All keys and values, read from a copy: a process opens one store once."""
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    environment = lmdb.open(str(copy), subdir=False, readonly=True, lock=False)
    with environment.begin() as transaction:
        found = dict(transaction.cursor())
    environment.close()
    copy.unlink()
    return found


def in_child(work: Callable[[], object]) -> int:
    """`work` in a forked process that leads its own group; its pid."""
    pid = os.fork()
    with contextlib.suppress(OSError):  # whichever of the two comes first
        os.setpgid(pid, pid)
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)
