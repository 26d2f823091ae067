"""Measures the data pipeline: `python launch/bench/bench_data.py [--out runs/bench] [--count 64] [--rounds 7]`, or what
loading a file of N items costs: `python launch/bench/bench_data.py --annotations N`, into `annotations.json`.

Draws pictures of 512 px as JPEG, builds a feature cache of them, and reads samples in this one process, the ways taking
turns so that a busy machine hurts all alike: decoding the JPEG alone, drawn online, from the cache, from the cache with
latents. Prints medians in samples per second and writes them with the settings to `data.json`. The stored latents are
averages of pixels in the official shape [4, 64, 64]: reading them costs the same whatever made them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import torch
from torch.nn import functional as F

from anytext2.cache.build import build
from anytext2.cache.encoders import encoder_of
from anytext2.cache.header import header_for
from anytext2.cache.store import FeatureCache
from anytext2.core.batch import Batch, Sample, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, DatasetConfig, load_image
from anytext2.glyphs.fonts import load_font_table
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from launch.bench import bench_annotations

SETTINGS = DatasetConfig(resolution=512, rand_font=True, font_hint_prob=0.8, font_hint_area=(0.7, 1.0))
"""How AnyText2 is trained (its other values are the defaults): font_hint_randaug, color_prob 1, mask_img_prob 0.5."""

_SEED = 2
_MICRO_BATCH = 4


def averaged_cells(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 4, H/8, W/8]: in place of a VAE's mean and standard deviation."""
    cells = F.avg_pool2d(pictures, 8)
    four = torch.cat([cells, cells.mean(dim=1, keepdim=True)], dim=1)
    return four, 0.1 * torch.ones_like(four)


def prepare(folder: Path, count: int) -> dict[str, AnyWordDataset]:
    """The same samples in three ways, by the name of the way."""
    source, store = folder / "pictures" / "data.json", folder / "features.lmdb"
    if not source.is_file():
        write_dataset(source.parent, count, SyntheticConfig(size=512, image_format="jpg"), _SEED)
    records, fonts = load_records(source)[0], load_font_table()
    online = AnyWordDataset(records, SETTINGS, _SEED, fonts)
    header = header_for(SETTINGS, fonts, [source], latents="averaged cells")
    build(store, online, header, workers=0, encode=encoder_of(averaged_cells, "cpu"))
    cache = FeatureCache.open(store, header)
    return {
        "online": online,
        "lmdb": AnyWordDataset(records, SETTINGS, _SEED, fonts, cache),
        "lmdb_latents": AnyWordDataset(records, SETTINGS, _SEED, fonts, cache, latents=True),
    }


def rates(ways: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, float]:
    """Median samples per second of each way; a way reads sample `i` of round `r` as number r * count + i."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, read in ways.items():
            begin = time.perf_counter()
            for number in range(turn * count, (turn + 1) * count):
                read(number)
            if turn:  # the first round warms fonts and files up
                found[name].append(count / (time.perf_counter() - begin))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def measure(folder: Path, count: int, rounds: int) -> dict[str, object]:
    """All figures and the settings they belong to."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    datasets = prepare(folder, count)
    records = datasets["online"].records

    def one(dataset: AnyWordDataset, number: int) -> Sample:
        return dataset.sample(number % count, number // count)

    def batched(dataset: AnyWordDataset, number: int) -> Batch:
        first = number * _MICRO_BATCH
        return collate([one(dataset, first + place) for place in range(_MICRO_BATCH)])

    def decode(number: int) -> object:
        return load_image(records[number % count].image_path)

    singly: dict[str, Callable[[int], object]] = {name: partial(one, d) for name, d in datasets.items()}
    together: dict[str, Callable[[int], object]] = {name: partial(batched, d) for name, d in datasets.items()}
    alone = rates({"jpeg_decode": decode, **singly}, count, rounds)
    collated = rates(together, count // _MICRO_BATCH, rounds)
    return {
        **alone,
        "collated": {name: round(rate * _MICRO_BATCH, 1) for name, rate in collated.items()},
        "unit": "samples per second and process, median",
        "settings": {**asdict(SETTINGS), "pictures": count, "rounds": rounds, "micro_batch": _MICRO_BATCH},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the data pipeline.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="pictures")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--annotations", type=int, metavar="N", help="load a file of N items instead, and no picture")
    args = parser.parse_args(argv)
    if args.annotations is not None:
        return _annotations(args.out, args.annotations)
    if args.count < _MICRO_BATCH or args.rounds < 1:
        print(f"error: --count must be at least {_MICRO_BATCH}, --rounds at least 1", file=sys.stderr)
        return 2
    found = measure(args.out, args.count, args.rounds)
    path = args.out / "data.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"samples per second and process, median of {args.rounds} rounds over {args.count} pictures of 512 px")
    collated = found["collated"]
    assert isinstance(collated, dict)
    for name in ("jpeg_decode", "online", "lmdb", "lmdb_latents"):
        with_collation = f"   {collated[name]:8.1f} in batches of {_MICRO_BATCH}" if name in collated else ""
        print(f"  {name:13}{found[name]:8.1f}{with_collation}")
    print(f"wrote {path}")
    return 0


def _annotations(out: Path, items: int) -> int:
    if items < 1:
        print(f"error: --annotations {items}: must be at least 1", file=sys.stderr)
        return 2
    found = bench_annotations.measure(out / "annotations" / "data.json", items)
    path = out / "annotations.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(bench_annotations.format_cost(found))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
