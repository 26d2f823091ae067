"""The header of a feature cache: the settings of its build, and their comparison with those of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from anytext2.data.geometry import Size
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import FontTable
from anytext2.glyphs.render import UPRIGHT_DEGREES

FORMAT_VERSION = 2


class CacheMismatchError(ValueError):
    """The store was built with other settings. The message is one line with the fields that differ."""


@dataclass(frozen=True)
class CacheHeader:
    """The settings of a store's build.

    resolution: size of the pictures, in the form of `size_name`.
    fonts, sources: hashes of the files, by file name; annotation files of one name are told apart by their folders.
    latents, captions: hashes of the VAE's and the text tower's weights; None if the store has no latents or contexts.
    buckets: data.buckets of the run, which decide which pictures are in a store.
    The other fields are options of `DatasetConfig` and constants of the drawing code.
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
    exif: str = "ignore"  # stores from before this option ignored it
    like_reference: bool = False  # stores without this field were drawn in our own way
    shard: str = ""  # 'K/N' for part K of N (anytext2/cache/shards.py), empty for a whole store

    @property
    def size(self) -> Size:
        """Height and width in pixels of the pictures that the rasters were drawn for."""
        width, _, height = self.resolution.partition("x")
        return int(height or width), int(width)

    def to_json(self) -> bytes:
        """The header as it is stored."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, where: Path) -> CacheHeader:
        """The header from its stored form. Raises CacheMismatchError for another format version or no header."""
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
        """'field: the store has A, the run wants B' for each field that differs; for hashes, the names of the files."""
        differences = []
        for field_ in fields(self):
            name, stored, requested = field_.name, getattr(self, field_.name), getattr(wanted, field_.name)
            if name in ("latents", "captions") and requested is None:
                continue  # a store with latents can be used without them
            if isinstance(stored, Mapping):
                files = _files_that_differ(stored, requested, by_name=name == "fonts")
                if files:
                    verb = "is" if len(files) == 1 else "are"
                    differences.append(f"{name}: {', '.join(files)} {verb} not the same")
            elif name == "shard" and stored and not requested:
                differences.append(f"shard: the store is part {stored}; name the folder that holds all parts")
            elif stored != requested:
                differences.append(f"{name}: the store has {stored}, the run wants {requested}")
        return differences


def _files_that_differ(stored: Mapping[str, str], requested: Mapping[str, str], by_name: bool) -> list[str]:
    """Names of the files that only one of both has. by_name: a file that was renamed is another one."""
    if by_name:
        return sorted(file for file in {*stored, *requested} if stored.get(file) != requested.get(file))
    shared = {*stored.values()} & {*requested.values()}
    return sorted({file for files in (stored, requested) for file, hash_ in files.items() if hash_ not in shared})


def size_name(size: Size) -> str:
    """A size (H, W) in the form of data.buckets: '512', or '768x512' (width x height)."""
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
    """The header of a whole store for a run with these settings; see `CacheHeader`.

    sources: the annotation files. size: (H, W) of the pictures, by default config.resolution squared.
    """
    sources = list(sources)
    files = {font.path for font in (fonts.default, *chain.from_iterable(fonts.languages.values()))}
    return CacheHeader(
        format=FORMAT_VERSION,
        resolution=size_name(size or (config.resolution, config.resolution)),
        max_lines=config.max_lines,
        max_chars=config.max_chars,
        glyph_scale=config.glyph_scale,
        ink_threshold=config.ink_threshold,
        upright_degrees=UPRIGHT_DEGREES,
        fonts={path.name: file_hash(path) for path in sorted(files)},
        sources=dict(zip(distinct_names(sources), map(file_hash, sources), strict=True)),
        latents=latents,
        captions=captions,
        buckets=sorted(buckets),
        exif=config.exif,
        like_reference=config.like_reference,
    )


def distinct_names(files: Sequence[Path]) -> list[str]:
    """The names of files, with as many folders before them as tell them apart: AnyWord-3M's files have one name."""
    length = 1
    while True:
        names = ["/".join(path.absolute().parts[-length:]) for path in files]
        if len(set(names)) == len(set(files)) or length > max(len(path.absolute().parts) for path in files):
            return names
        length += 1


def file_hash(path: Path) -> str:
    """BLAKE2b of a file's content: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
