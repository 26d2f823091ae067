"""Durable file writes."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Blocks until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
