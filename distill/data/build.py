"""From a recipe's data section to a dataset: annotation files (or drawn pictures), fonts, feature cache."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import nn

from anytext2.cache.header import CacheHeader, CacheMismatchError, header_for, size_name
from anytext2.cache.shards import JoinedCaches, open_folder
from anytext2.cache.store import FeatureCache, FeatureCachesBySize
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, missing_glyphs
from anytext2.data.geometry import Size
from anytext2.glyphs.fonts import FontTable, load_font_table
from anytext2.model.anytext2 import AnyText2
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.schema import DataConfig, Recipe, SyntheticDataConfig
from distill.data.cache_command import build_cache_command
from distill.data.judgement import judge_records
from distill.data.picture_files import probe_pictures
from distill.data.splits import image_sizes
from distill.runtime.world import World, on_main

DRAWN = "data"
"""Folder of the drawn pictures in the run folder."""

FIRST_HELD_OUT_INDEX = 10_000_000
"""Index of the first held-out synthetic picture. Training sets start at 0 and are smaller, so they never overlap."""

GLYPH_CHECK_PICTURES = 100_000
"""Pictures whose texts are searched for characters without a glyph when a run starts. launch/check_dataset.py searches
all of them."""


def build_dataset(recipe: Recipe, world: World, model: AnyText2 | None = None) -> AnyWordDataset:
    """The recipe's dataset; where it names no source, one is drawn into the run folder first. Collective.

    Raises ValueError, on every rank, if a file cannot be read or cannot teach.

    model: whose latents and contexts the feature cache must hold, if the recipe takes them from there.
    """
    sources = [Path(s) for s in recipe.data.sources]
    if not sources:
        sources = [recipe.run_dir / DRAWN / "data.json"]
        if world.is_main and must_draw(recipe):
            _draw(recipe.data.synthetic, sources[0])
        if world.size > 1:
            dist.barrier()
    options, fonts = recipe.data.options, load_font_table()
    records, report = load_records(
        sources, options.wm_threshold, options.tells_watermarks, max_faulty=recipe.data.max_faulty
    )
    if world.is_main:
        print(f"data: {report}", flush=True)
        if recipe.data.latents != "cache":  # which needs no picture
            print("".join(f"warning: {line}\n" for line in probe_pictures(records, options.exif)), end="", flush=True)
    seen = on_main(world, lambda: judge_records(records, report, options, recipe.data.max_faulty_lines, fonts))
    if world.is_main:
        if seen:
            print(f"data: {seen}", flush=True)
        count = min(len(records), GLYPH_CHECK_PICTURES)
        probed = np.unique(np.linspace(0, len(records) - 1, count).round().astype(np.int64))
        _report_missing_glyphs(missing_glyphs(records.select(probed), fonts), len(probed), len(records))
    try:
        cache = open_cache(recipe.data, sources, fonts, model, verbose=world.is_main)
    except ValueError as error:
        what = (
            "one store for all files of this run" if Path(str(recipe.data.cache)).is_dir() else "the one for this run"
        )
        raise ValueError(f"{error}. This builds {what}: {build_cache_command(recipe, sources)}") from error
    latents, captions = (cache is not None and kind == "cache" for kind in (recipe.data.latents, recipe.data.captions))
    return AnyWordDataset(records, options, recipe.seed, fonts, cache, latents, captions)


def open_cache(
    data: DataConfig, sources: Sequence[Path], fonts: FontTable, model: AnyText2 | None, verbose: bool
) -> FeatureCache | JoinedCaches | FeatureCachesBySize | None:
    """The recipe's feature cache, or None where it has none or may go on without a matching one.

    Raises ValueError, naming what differs, where a store was made for something else.
    """
    if data.cache is None:
        return None
    latents, captions = _wanted_hashes(data, model)
    sizes = image_sizes(data)
    wanted = {size: cache_header(data, size, fonts, sources, latents, captions) for size in sizes}
    try:
        opened = {size: _open_store(Path(data.cache), size, data, wanted[size]) for size in sizes}
    except CacheMismatchError as error:
        if data.cache_mismatch == "error":
            raise
        if data.latents == "cache":
            raise ValueError(f"{error}; data.latents=cache cannot go on without it") from error
        if verbose:
            print(f"warning: {error}: everything is drawn and encoded online", flush=True)
        return None
    if verbose and data.options.font_hint_randaug and data.options.font_hint_prob:
        print(
            f"{data.cache}: font_hint_randaug turns and shifts the stored strokes; online it does so with the picture",
            flush=True,
        )
    return FeatureCachesBySize(opened) if data.buckets else opened[sizes[0]]


def _open_store(path: Path, size: Size, data: DataConfig, wanted: CacheHeader) -> FeatureCache | JoinedCaches:
    """The store for one size, or all that a folder holds for it."""
    return open_folder(path, wanted) if path.is_dir() else FeatureCache.open(cache_path(path, size, data), wanted)


def cache_path(path: Path, size: Size, data: DataConfig) -> Path:
    """The file of the store for one size: data.cache itself, or with buckets 'features-768x512.lmdb' beside it."""
    return path.with_name(f"{path.stem}-{size_name(size)}{path.suffix}") if data.buckets else path


def cache_header(
    data: DataConfig,
    size: Size,
    fonts: FontTable,
    sources: Sequence[Path],
    latents: str | None,
    captions: str | None,
) -> CacheHeader:
    """The header of a store that serves a run with this data section, for pictures of one size."""
    return header_for(data.options, fonts, sources, latents, captions, size, data.buckets)


def _wanted_hashes(data: DataConfig, model: AnyText2 | None) -> tuple[str | None, str | None]:
    """Of the VAE and of the text tower, where the recipe takes something of theirs from the store."""
    if "cache" not in (data.latents, data.captions):
        return None, None
    assert model is not None, "the origin of latents and contexts is to be checked"
    return (
        weights_hash(model.first_stage_model) if data.latents == "cache" else None,
        weights_hash(model.cond_stage_model) if data.captions == "cache" else None,
    )


def weights_hash(module: nn.Module) -> str:
    """BLAKE2b of a module's weights as float16, by name: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def must_draw(recipe: Recipe) -> bool:
    """Whether `build_dataset` draws pictures. Raises ValueError where the run folder holds others."""
    if recipe.data.sources:
        return False
    folder, wanted = recipe.run_dir / DRAWN, asdict(recipe.data.synthetic)
    if not (folder / "data.json").is_file():
        SyntheticConfig(size=recipe.data.synthetic.size)  # refuses what cannot be drawn
        return True
    note = folder / "drawn.json"
    found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    if found != wanted:
        raise ValueError(f"data.synthetic={wanted}, but {folder} holds {found}; remove it or choose another name=...")
    return False


def _draw(section: SyntheticDataConfig, annotations: Path) -> None:
    folder = annotations.parent
    print(f"data.sources is empty: drawing {section.count} pictures of {section.size} px into {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "drawn.json").write_text(json.dumps(asdict(section)) + "\n", encoding="utf-8")
    write_dataset(folder, section.count, SyntheticConfig(size=section.size), section.seed, section.first_index)


def _report_missing_glyphs(missing: Counter[str], probed: int, pictures: int) -> None:
    if missing:
        where = f" (in {probed} of {pictures} pictures, evenly spread)" if probed < pictures else ""
        often = ", ".join(f"{char!r} (U+{ord(char):04X}) {count}" for char, count in missing.most_common(5))
        print(
            f"fonts: {sum(missing.values())} characters ({len(missing)} different) have no glyph in fonts/ and are "
            f"left out of the drawn lines; a line without any other is ignored; most often {often}{where}",
            flush=True,
        )
