"""Writing of files: durable, whole or not at all, and readable by whom the umask says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Writes a safetensors file with the mode of any new file in its folder; the library's own is 0600.

    The tensors are written contiguous, whatever their memory format is.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        None if metadata is None else dict(metadata),
    )
    path.chmod(mode)


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


def not_weights(path: Path) -> str:
    """What a file is that was named as weights but holds none, and what would help; empty where it may hold some."""
    if path.is_dir():
        return "a folder; name the weights file in it"
    with path.open("rb") as file:
        start = file.read(512)
    for sign, kind in _NOT_WEIGHTS:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(sign):
            return kind
    if start.startswith(b"PK") and path.suffix == ".safetensors":
        return "a torch file; give it the suffix .ckpt"
    if start[8:9] == b"{" and path.suffix != ".safetensors":
        return "a safetensors file; give it the suffix .safetensors"
    if not start.translate(None, _TEXT):
        return "text" if start else "an empty file; copy or download it again"
    return ""


_TEXT = bytes([*range(32, 127), *b"\t\n\r"])
_PAGE = "an HTML page, as a refused download leaves; download the file itself"
_NOT_WEIGHTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; download that, as with `git lfs pull`"),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"gguf", "a GGUF file, which is not read; a safetensors or torch file is needed"),
)
