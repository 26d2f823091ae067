"""What a dataset may read instead of making it: the values of a feature cache, and the cache as a dataset sees it.

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
    """float16 [z, h, w] each: mean and standard deviation of the picture's scaled latent, and the scaled latent of the
    picture with its lines hidden."""

    mean: np.ndarray
    deviation: np.ndarray
    masked: np.ndarray

    def pack(self) -> bytes:
        parts = (self.mean, self.std, self.masked)
        return _SHAPE.pack(*self.mean.shape) + b"".join(np.ascontiguousarray(x, np.float16).tobytes() for x in parts)

    @classmethod
    def unpack(cls, content: bytes) -> StoredLatents:
        shape = _SHAPE.unpack_from(content, 0)
        values = np.frombuffer(content, np.float16, offset=_SHAPE.size).reshape(3, *shape)
        return cls(values[0], values[1], values[2])


@dataclass(frozen=True)
class CacheEntry:
    """What the store holds of a record: height and width of the picture file in pixels, its parts, and latents."""

    size: Size
    parts: StoredRasters
    latents: StoredLatents | None


class SizedFeatures(Protocol):
    """Stored features for pictures of one size."""

    def entry(self, record: Record, with_latents: bool = False) -> CacheEntry | None:
        """None for a record that could not be read when the features were made."""

    def context(self, caption: str) -> np.ndarray | None:
        """float16 [K, 77, D] of an image caption; None for one that is not stored."""


class FeatureSource(Protocol):
    """Stored features of the same pictures in one or several sizes (H, W)."""

    def at(self, size: Size) -> SizedFeatures | None:
        """The features for pictures of a size, or None."""

    def file_size(self, record: Record) -> Size | None:
        """Height and width of the picture file; None for a record without stored features."""
