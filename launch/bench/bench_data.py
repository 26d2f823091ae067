"""Measures the data pipeline: `python launch/bench/bench_data.py [--out runs/bench] [--count 64] [--rounds 7]`.

Draws pictures of 512 px as JPEG, builds a feature cache of them, and reads samples in one process in four ways: JPEG
decoding only, online drawing, from the cache, and from the cache with latents. The ways take turns, so that other load
on the machine affects them equally. Prints medians in samples per second and writes them with the settings to
`data.json`. The stored latents are averages of pixels in the official shape [4, 64, 64]; their values do not affect the
speed.

`--annotations N` measures the loading of an annotation file of N items instead, and writes `annotations.json`.
"""

from __future__ import annotations

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

from anytext2.cache.build import build_cache
from anytext2.cache.encoders import make_image_encoder
from anytext2.cache.header import header_for
from anytext2.cache.store import FeatureCache
from anytext2.core.batch import Batch, Sample, collate
from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset, load_image
from anytext2.data.options import DatasetConfig
from anytext2.glyphs.fonts import load_font_table
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from launch.bench import bench_annotations
from launch.common.command_help import command_parser

SETTINGS = DatasetConfig(resolution=512, rand_font=True, font_hint_prob=0.8, font_hint_area=(0.7, 1.0))
"""AnyText2's training options. Those that are not given are DatasetConfig's defaults."""

_SEED = 2
_MICRO_BATCH = 4


def averaged_cells(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A substitute for a VAE's mean and standard deviation, [B, 4, H/8, W/8] each, of pictures [B, 3, H, W]."""
    cells = F.avg_pool2d(pictures, 8)
    mean = torch.cat([cells, cells.mean(dim=1, keepdim=True)], dim=1)
    return mean, 0.1 * torch.ones_like(mean)


def prepare(folder: Path, count: int) -> dict[str, AnyWordDataset]:
    """Datasets that read the same samples in three ways, by name."""
    source, store = folder / "pictures" / "data.json", folder / "features.lmdb"
    if not source.is_file():
        write_dataset(source.parent, count, SyntheticConfig(size=512, image_format="jpg"), _SEED)
    records, fonts = load_records(source)[0], load_font_table()
    online = AnyWordDataset(records, SETTINGS, _SEED, fonts)
    header = header_for(SETTINGS, fonts, [source], latents="averaged cells")
    build_cache(store, online, header, workers=0, encode=make_image_encoder(averaged_cells, "cpu"))
    cache = FeatureCache.open(store, header)
    return {
        "online": online,
        "lmdb": AnyWordDataset(records, SETTINGS, _SEED, fonts, cache),
        "lmdb_latents": AnyWordDataset(records, SETTINGS, _SEED, fonts, cache, read_latents=True),
    }


def median_rates(readers: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, float]:
    """Median calls per second of each reader over `rounds` rounds of `count` calls, after one round to warm up.

    The argument of a reader is the number of the call: i + round * count.
    """
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name, read in readers.items():
            begin = time.perf_counter()
            for number in range(turn * count, (turn + 1) * count):
                read(number)
            if turn:
                rates[name].append(count / (time.perf_counter() - begin))
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def measure(folder: Path, count: int, rounds: int) -> dict[str, object]:
    """All rates in samples per second, with the settings."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    datasets = prepare(folder, count)
    records = datasets["online"].records

    def read_sample(dataset: AnyWordDataset, number: int) -> Sample:
        return dataset.sample(number % count, number // count)

    def read_batch(dataset: AnyWordDataset, number: int) -> Batch:
        first = number * _MICRO_BATCH
        return collate([read_sample(dataset, first + row) for row in range(_MICRO_BATCH)])

    def decode(number: int) -> object:
        return load_image(records[number % count])

    samples: dict[str, Callable[[int], object]] = {name: partial(read_sample, d) for name, d in datasets.items()}
    batches: dict[str, Callable[[int], object]] = {name: partial(read_batch, d) for name, d in datasets.items()}
    rates = median_rates({"jpeg_decode": decode, **samples}, count, rounds)
    collated = median_rates(batches, count // _MICRO_BATCH, rounds)
    return {
        **rates,
        "collated": {name: round(rate * _MICRO_BATCH, 1) for name, rate in collated.items()},
        "unit": "samples per second and process, median",
        "settings": {**asdict(SETTINGS), "pictures": count, "rounds": rounds, "micro_batch": _MICRO_BATCH},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("Measure the data pipeline.", "python launch/bench/bench_data.py --annotations 500000")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="for data.json")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="pictures")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="over all pictures")
    parser.add_argument("--annotations", type=int, metavar="N", help="measure loading a file of N items instead")
    args = parser.parse_args(argv)
    if args.annotations is not None:
        return _measure_annotations(args.out, args.annotations)
    if args.count < _MICRO_BATCH or args.rounds < 1:
        print(f"error: --count must be at least {_MICRO_BATCH}, --rounds at least 1", file=sys.stderr)
        return 2
    rates = measure(args.out, args.count, args.rounds)
    path = args.out / "data.json"
    path.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    print(f"samples per second and process, median of {args.rounds} rounds over {args.count} pictures of 512 px")
    collated = rates["collated"]
    assert isinstance(collated, dict)
    for name in ("jpeg_decode", "online", "lmdb", "lmdb_latents"):
        with_collation = f"   {collated[name]:8.1f} in batches of {_MICRO_BATCH}" if name in collated else ""
        print(f"  {name:13}{rates[name]:8.1f}{with_collation}")
    print(f"wrote {path}")
    return 0


def _measure_annotations(out: Path, items: int) -> int:
    if items < 1:
        print(f"error: --annotations {items}: must be at least 1", file=sys.stderr)
        return 2
    cost = bench_annotations.measure(out / "annotations" / "data.json", items)
    path = out / "annotations.json"
    path.write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")
    print(bench_annotations.format_cost(cost))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
