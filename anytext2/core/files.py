"""File writes that leave nothing half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync(path: Path) -> None:
    """Blocks until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a hidden name beside `path` to write to. It becomes `path` at the end, and is removed after an error."""
    hidden = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield hidden
        os.replace(hidden, path)
    except BaseException:  # Ctrl-C too
        hidden.unlink(missing_ok=True)
        raise
