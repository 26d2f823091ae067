"""The header of a feature cache: how its store was made, and whether that is what a run wants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from anytext2.data.dataset import DatasetConfig
from anytext2.data.geometry import Size
from anytext2.glyphs.fonts import FontTable
from anytext2.glyphs.render import UPRIGHT_DEGREES

FORMAT_VERSION = 2


class CacheMismatchError(ValueError):
    """The store was made with other settings; the message is one line that names the fields."""


@dataclass(frozen=True)
class CacheHeader:
    """How a store was made.

    resolution: of the pictures, as `size_name` writes it. fonts, sources: hash by file name. latents, captions: hash of
    the VAE's and of the text tower's weights, None in a store without these. buckets: of the run that it serves; they
    decide which pictures are in a store.
    """

    format: int
    resolution: str
    max_lines: int
    max_chars: int
    glyph_scale: int
    ink_threshold: float
    upright_degrees: float
    fonts: Mapping[str, str]
    sources: Mapping[str, str]
    latents: str | None = None
    captions: str | None = None
    buckets: list[str] = field(default_factory=list)

    @property
    def size(self) -> Size:
        """Height and width of the pictures that the parts were drawn for."""
        width, _, height = self.resolution.partition("x")
        return int(height or width), int(width)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, where: Path) -> CacheHeader:
        """Raises CacheMismatchError for what is no header of this format."""
        try:
            values: Any = json.loads(content)
            if values["format"] != FORMAT_VERSION:
                raise CacheMismatchError(
                    f"{where}: format {values['format']}, this version reads {FORMAT_VERSION}; build it anew"
                )
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, CacheMismatchError):
                raise
            raise CacheMismatchError(f"{where}: its header cannot be read; it is no feature cache") from error

    def differences(self, wanted: CacheHeader) -> list[str]:
        """'field: the store has A, the run wants B' for every field that differs, hashes by file name."""
        found = []
        for one in fields(self):
            ours, theirs = getattr(self, one.name), getattr(wanted, one.name)
            if one.name in ("latents", "captions") and theirs is None:
                continue  # a store with latents serves a run that wants none
            if isinstance(ours, Mapping):
                names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
                found += [f"{one.name}: {', '.join(names)} {'is' if len(names) == 1 else 'are'} not the same"][
                    : len(names)
                ]
            elif ours != theirs:
                found.append(f"{one.name}: the store has {ours}, the run wants {theirs}")
        return found


def size_name(size: Size) -> str:
    """A size (H, W) as data.buckets writes it: '512', or '768x512' (width x height)."""
    height, width = size
    return str(width) if width == height else f"{width}x{height}"


def header_for(
    config: DatasetConfig,
    fonts: FontTable,
    sources: Iterable[Path],
    latents: str | None = None,
    captions: str | None = None,
    size: Size | None = None,
    buckets: Iterable[str] = (),
) -> CacheHeader:
    """The header of a store that serves samples of this configuration; size (H, W): by default its resolution."""
    files = {font.path for font in (fonts.default, *(f for all_of in fonts.languages.values() for f in all_of))}
    return CacheHeader(
        format=FORMAT_VERSION,
        resolution=size_name(size or (config.resolution, config.resolution)),
        max_lines=config.max_lines,
        max_chars=config.max_chars,
        glyph_scale=config.glyph_scale,
        ink_threshold=config.ink_threshold,
        upright_degrees=UPRIGHT_DEGREES,
        fonts={path.name: file_hash(path) for path in sorted(files)},
        sources={path.name: file_hash(path) for path in sources},
        latents=latents,
        captions=captions,
        buckets=sorted(buckets),
    )


def file_hash(path: Path) -> str:
    """BLAKE2b of the file's content, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
