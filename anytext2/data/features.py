"""The values that a feature cache stores, and the interface through which a dataset reads them.

Shape legend: z latent channels, h/w latent cells, K chunks of a caption, D context width.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anytext2.core.batch import Record
from anytext2.data.geometry import Size
from anytext2.glyphs.rasters import StoredRasters

_SHAPE = struct.Struct("<HHH")  # z, h, w; mean, standard deviation and masked latent follow, each float16


@dataclass(frozen=True)
class StoredLatents:
    """Scaled latents of one picture, each float16 [z, h, w].

    mean, std: of the picture's posterior. masked: mean of the posterior of the picture with its lines blacked out.
    """

    mean: np.ndarray
    std: np.ndarray
    masked: np.ndarray

    def pack(self) -> bytes:
        """The cache's binary format."""
        parts = (self.mean, self.std, self.masked)
        return _SHAPE.pack(*self.mean.shape) + b"".join(np.ascontiguousarray(x, np.float16).tobytes() for x in parts)

    @classmethod
    def unpack(cls, content: bytes) -> StoredLatents:
        """The latents from the bytes that `pack` returned; the arrays are read-only."""
        shape = _SHAPE.unpack_from(content, 0)
        values = np.frombuffer(content, np.float16, offset=_SHAPE.size).reshape(3, *shape)
        return cls(values[0], values[1], values[2])


@dataclass(frozen=True)
class CacheEntry:
    """The stored features of a record. file_size: height and width of the picture file in pixels."""

    file_size: Size
    rasters: StoredRasters
    latents: StoredLatents | None


class SizedFeatures(Protocol):
    """Stored features for pictures of one size."""

    def entry(self, record: Record, with_latents: bool = False) -> CacheEntry | None:
        """The features of a record; None if it has none, or no latents although `with_latents`."""

    def context(self, caption: str) -> np.ndarray | None:
        """The context float16 [K, 77, D] of an image caption; None if it is not stored."""


class FeatureSource(Protocol):
    """Stored features of the same pictures in one or several sizes (H, W)."""

    def for_size(self, size: Size) -> SizedFeatures | None:
        """The features for pictures of size (H, W); None if there are none."""

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file in pixels; None for a record without stored features."""
