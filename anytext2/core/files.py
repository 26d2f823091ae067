"""Writing of files: durable, and readable by whom the umask says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def fsync(path: Path) -> None:
    """Blocks until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with the mode of any new file in its folder; the library's own is 0600."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)
