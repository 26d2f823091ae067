"""Builds a feature cache: `python launch/build_lmdb_cache.py data.json --out features.lmdb [key=value ...]`.

Stores what is drawn once for each picture (glyph pages in every font, glyph lines, strokes for the font hint), and with
`--latents` the VAE's latents of the recipe's model, with `--captions` the contexts of the image captions. A build that
was stopped or killed goes on where it was when the same command runs again. A run uses the store with
`data.cache=features.lmdb`, its latents with `data.latents=cache` and its contexts with `data.captions=cache`. For a run
with `data.buckets=[512,768x512]` name the same buckets here: each size gets a store of its own, as
features-768x512.lmdb. `--shard 2/8` builds the second of eight parts, features-2of8.lmdb, on a machine of its own; a
run uses all stores of a folder with `data.cache=FOLDER`. Exit code 0: done; 2: the command, a file or a value is wrong,
or the stores do not fit: on the disk, in the quota, or under a limit on the size of files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launch.common.cli import is_command, require_output_file, run_command
from launch.common.parsers import parse_build_cache as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

import torch
from tqdm import tqdm

from anytext2.cache.build import build_cache, estimate_cache_bytes
from anytext2.cache.encoders import (
    EncodeCaptions,
    EncodeImages,
    context_bytes,
    make_caption_encoder,
    make_image_encoder,
)
from anytext2.cache.header import CacheHeader
from anytext2.cache.shards import Shard
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.geometry import Size
from anytext2.model.memory_format import use_gpu_format
from distill.config.schema import Recipe
from distill.data.build import cache_header, cache_path, weights_hash
from distill.data.picture_files import probe_pictures
from distill.data.splits import records_by_size
from distill.inference.loading import load_dataset, resolve_device
from distill.inference.model import make_model
from distill.runtime.device_settings import apply_device_settings
from launch.common.data_options import resolve_data

_GIB = 2**30


@dataclass(frozen=True)
class Encoders:
    """What the recipe's model adds to a store, with the hashes of the weights that it comes from.

    latent_bytes: of one picture of a size (H, W); caption_bytes: of one caption's context.
    """

    encode: EncodeImages | None = None
    latents: str | None = None
    latent_bytes: Callable[[Size], int] = lambda size: 0
    encode_captions: EncodeCaptions | None = None
    captions: str | None = None
    caption_bytes: Callable[[str], int] | None = None


@dataclass(frozen=True)
class Store:
    """One file to be written, and the pictures that go into it."""

    path: Path
    header: CacheHeader
    dataset: AnyWordDataset
    estimate: int


def run(args: argparse.Namespace) -> int:
    """Builds and says what was built; returns 0. Raises ValueError in one line."""
    if args.workers < 0 or (args.map_size is not None and args.map_size <= 0):
        raise ValueError(f"--workers {args.workers} --map-size {args.map_size}: must be positive")
    require_output_file(args.out, "--out")
    shard = Shard.parse(args.shard) if args.shard else None
    device = resolve_device(args.device)
    sources, recipe = resolve_data(args)
    dataset, report = load_dataset(sources, recipe, judge=True)
    print(f"data: {report}")
    for warning in probe_pictures(dataset.records, recipe.data.options.exif):
        print(f"warning: {warning}")
    encoders = _encoders(args, recipe, device) if args.latents or args.captions else Encoders()
    if shard is not None:
        dataset = dataset.select(shard.indices(dataset))
        print(f"part {shard}: {len(dataset)} pictures")
    stores = []
    for size, indices in records_by_size(dataset, recipe.data).items():
        part, path = dataset.select(indices), cache_path(args.out, size, recipe.data)
        header = cache_header(recipe.data, size, dataset.fonts, sources, encoders.latents, encoders.captions)
        estimate = estimate_cache_bytes(part, size, encoders.latent_bytes(size), encoders.caption_bytes)
        if shard is not None:
            path, header = shard.path(path), replace(header, shard=str(shard))
        stores.append(Store(path, header, part, estimate))
    max_bytes = round(args.map_size * _GIB) if args.map_size else shutil.disk_usage(_existing(args.out)).free
    _announce(args, stores, max_bytes)
    for store in stores:
        _build(store, args.workers, max_bytes, encoders)
    if shard is not None:
        print(f"with all {shard.count} parts in one folder, a run uses them with data.cache={args.out.parent}")
    return 0


def _build(store: Store, workers: int, max_bytes: int, encoders: Encoders) -> None:
    with tqdm(total=len(store.dataset), unit="picture", mininterval=1.0) as bar:
        done = build_cache(
            store.path,
            store.dataset,
            store.header,
            workers,
            max_bytes,
            encoders.encode,
            encoders.encode_captions,
            progress=bar.update,
        )
    captions = f", contexts of {done.captions} captions" if encoders.captions else ""
    left_out = "".join(f"; {reason}: {count}" for reason, count in sorted(done.skipped.items()))
    print(f"wrote {store.path}: {done.stored} pictures{captions}, {done.bytes / _GIB:.3f} GiB{left_out}")


def _announce(args: argparse.Namespace, stores: Sequence[Store], max_bytes: int) -> None:
    """Prints how large the stores will be. Raises ValueError where there is no room for them."""
    for store in stores:
        pictures = f"{len(store.dataset)} pictures of {store.header.resolution} px"
        room = f"{max_bytes / _GIB:.1f} GiB may be used"
        print(f"{store.path}: about {store.estimate / _GIB:.3f} GiB for {pictures}, {room}")
    size = sum(store.estimate for store in stores)
    if size > max_bytes:
        raise ValueError(
            f"{args.out}: about {size / _GIB:.2f} GiB are needed and {max_bytes / _GIB:.2f} may be used; "
            "free disk space, give more with --map-size, or leave out --latents and --captions"
        )
    if args.latents:
        print(
            "with latents: the posterior's noise, fonts, hints, colours and positions stay random; the hidden area in "
            "editing mode has exact edges, and pictures with more lines than data.options.max_lines are not edited"
        )
    if args.captions:
        long = sum(store.dataset.count_shortened_captions() for store in stores)
        print(
            f"with captions: nothing random is frozen; {long} captions of more than data.options.max_caption_words "
            "words are shortened anew for every sample, so a run encodes these itself"
        )
    sys.stdout.flush()


def _encoders(args: argparse.Namespace, recipe: Recipe, device: str) -> Encoders:
    model = make_model(recipe.model, recipe.seed).to(device).eval().requires_grad_(False)
    apply_device_settings(model.device, tf32=False)
    use_gpu_format(model)
    found = Encoders()
    if args.latents:
        found = replace(
            found,
            encode=make_image_encoder(model.posterior, next(model.parameters()).device),
            latents=weights_hash(model.first_stage_model),
            latent_bytes=lambda size: 6 * torch.Size(model.latent_shape(*size)).numel(),
        )
    if args.captions:
        encoder = model.cond_stage_model
        found = replace(
            found,
            encode_captions=make_caption_encoder(encoder),
            captions=weights_hash(encoder),
            caption_bytes=partial(context_bytes, width=encoder.cfg.width),
        )
    return found


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    stays = "interrupted; what is stored so far stays beside --out as .partial, and the same command goes on from there"
    return run_command(lambda: run(args), interrupted=stays)


if __name__ == "__main__":
    raise SystemExit(main())
