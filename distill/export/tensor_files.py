"""Weights files written tensor by tensor: safetensors, and torch's own format. One tensor is in memory at a time.

Both are what the usual writers make of a whole state dict, so the usual readers read them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from anytext2.core.files import whole_file
from distill.adapter_files.metadata import METADATA

_SAFETENSORS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_TORCH = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
}
_ALIGNMENT = 64
"""torch maps tensors into memory at multiples of this."""
_ROOM = 64 * 2**20
"""Bytes that stay free beside a new file."""


class TensorSpec(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


Produce = Callable[[str], Tensor]
"""The values of the tensor with this name, in the shape and dtype of its `TensorSpec`."""


def write_tensor_file(
    path: Path, specs: Sequence[TensorSpec], produce: Produce, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a .safetensors file, or as {"state_dict": ...} a .ckpt, .pt or .pth file, whole or not at all.

    metadata: texts; in a torch file the entry `METADATA` only. Raises ValueError for another suffix, OSError where
    there is no room.
    """
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        raise ValueError(f"{path}: suffix {path.suffix or '(none)'}: one of {', '.join(_WRITERS)} is needed")
    require_room(path, sum(spec.bytes for spec in specs))
    with whole_file(path) as hidden, hidden.open("wb") as file:
        writer(file, specs, produce, dict(metadata or {}))
        file.flush()
        os.fsync(file.fileno())


def require_room(path: Path, needed: int) -> None:
    """Raises OSError where the disk has not that many bytes for a file, and some more. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < needed + _ROOM:
        reason = f"no room: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, reason, str(path))


def _write_safetensors(file: BinaryIO, specs: Sequence[TensorSpec], produce: Produce, metadata: dict[str, str]) -> None:
    """The header first: the sizes are known. The widest types come first, so that every tensor is aligned."""
    ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for spec in ordered:
        start, end = end, end + spec.bytes
        entry = {"dtype": _SAFETENSORS[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        header[spec.name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for spec in ordered:
        file.write(_bytes(spec, produce(spec.name)))


def _write_torch(file: BinaryIO, specs: Sequence[TensorSpec], produce: Produce, metadata: dict[str, str]) -> None:
    """As `torch.save`: a zip of a pickle, which describes the tensors, and of each tensor's bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _description(specs, metadata))
        archive.writestr("archive/byteorder", "little")
        for i, spec in enumerate(specs):
            info = zipfile.ZipInfo(f"archive/data/{i}")
            info.file_size = spec.bytes
            info.extra = _padding(file.tell() + 30 + len(info.filename) + 4)  # 30: a local header; 4: of the padding
            with archive.open(info, "w") as entry:
                entry.write(_bytes(spec, produce(spec.name)))
        archive.writestr("archive/version", "3\n")


def _padding(offset: int) -> bytes:
    """A zip entry's extra field after which the next multiple of `_ALIGNMENT` is; offset: with an empty one."""
    size = -offset % _ALIGNMENT
    return struct.pack("<2sH", b"FB", size) + b"Z" * size


def _description(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The opcodes of Python's pickle format (protocol 2) that `torch.save` writes for a dictionary of state dict.

    They are written out here because a pickler needs tensors that exist.
    """
    parts = [b"\x80\x02}(", _text("state_dict"), b"}("]
    for number, spec in enumerate(specs):
        storage = b"(" + _text("storage") + _global("torch", _TORCH[spec.dtype].__name__)
        storage += _text(str(number)) + _text("cpu") + _int(spec.numel) + b"tQ"  # Q: an object that the reader looks up
        strides = [int(torch.Size(spec.shape[i + 1 :]).numel()) for i in range(len(spec.shape))]
        sizes = _ints(spec.shape) + _ints(strides)
        hooks = _global("collections", "OrderedDict") + b")R"
        arguments = b"(" + storage + _int(0) + sizes + b"\x89" + hooks + b"t"  # \x89: False, requires no gradient
        parts += [_text(spec.name), _global("torch._utils", "_rebuild_tensor_v2"), arguments, b"R"]
    parts.append(b"u")
    if METADATA in metadata:
        parts += [_text(METADATA), _text(metadata[METADATA])]
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _ints(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _bytes(spec: TensorSpec, tensor: Tensor) -> memoryview:
    assert (tuple(tensor.shape), tensor.dtype) == (tuple(spec.shape), spec.dtype), (spec, tensor.shape, tensor.dtype)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


_WRITERS: dict[str, Callable[[BinaryIO, Sequence[TensorSpec], Produce, dict[str, str]], None]] = {
    ".safetensors": _write_safetensors,
    ".ckpt": _write_torch,
    ".pt": _write_torch,
    ".pth": _write_torch,
}
