"""Weights, parts and picture sizes: what an epoch holds, and that it depends on the seed and the names alone."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anytext2.data.annotations import load_records
from anytext2.data.dataset import AnyWordDataset
from anytext2.data.options import DatasetConfig
from anytext2.data.records import Records
from anytext2.glyphs.fonts import load_font_table
from distill.config.schema import DataConfig
from distill.data.batch_sampler import (
    Bucket,
    BucketBatchSampler,
    SampleKey,
    ShuffledBatchSampler,
    WeightedIndices,
    nearest_aspect_ratio,
)
from distill.data.loader import BatchSizes, micro_batches
from distill.data.splits import _cached_size, bucket_shapes, make_batch_sampler, split_indices


def epoch(order: ShuffledBatchSampler, number: int) -> list[SampleKey]:
    return [order.at(number * order.length + offset) for offset in range(order.length)]


def test_a_weight_is_how_often_a_source_occurs() -> None:
    twice, half = WeightedIndices(np.arange(10), 2.0), WeightedIndices(np.arange(10, 30), 0.5)
    never, more = WeightedIndices(np.arange(30, 40), 0.0), WeightedIndices(np.arange(40, 44), 1.25)
    order = ShuffledBatchSampler([twice, half, never, more], seed=2)
    assert order.length == 20 + 10 + 0 + 5
    halves = set()
    for number in range(4):
        counts = Counter(key.index for key in epoch(order, number))
        assert [counts[i] for i in range(10)] == [2] * 10
        assert sorted(counts[i] for i in range(10, 30)) == [0] * 10 + [1] * 10
        assert sorted(counts[i] for i in range(40, 44)) == [1, 1, 1, 2]
        halves.add(frozenset(i for i in range(10, 30) if counts[i]))
    assert len(halves) == 4, "another half in every epoch"


def test_a_sample_that_comes_twice_in_an_epoch_has_two_keys() -> None:
    order = ShuffledBatchSampler([WeightedIndices(np.arange(6), 2.5)], seed=0)
    keys = [key for number in range(5) for key in epoch(order, number)]
    assert len(set(keys)) == len(keys) == 5 * 15


def test_without_weights_the_epoch_is_the_key_s() -> None:
    order = ShuffledBatchSampler(9, seed=1)
    assert {key.epoch for key in epoch(order, 3)} == {3}


def buckets(seed: int = 4) -> BucketBatchSampler:
    wide = Bucket(ShuffledBatchSampler([WeightedIndices(np.arange(40))], seed), ((64, 128),))
    square = Bucket(ShuffledBatchSampler([WeightedIndices(np.arange(40, 100))], seed), ((64, 64), (128, 128)))
    return BucketBatchSampler([wide, square], seed)


def test_every_global_batch_has_one_size_and_every_sample_its_turn() -> None:
    order = buckets()
    batches = [order.batch(number, 10) for number in range(40)]
    assert all(len({key.size for key in batch}) == 1 for batch in batches)
    assert {batch[0].size for batch in batches} == {(64, 128), (64, 64), (128, 128)}
    assert Counter(key.index for batch in batches for key in batch) == dict.fromkeys(range(100), 4)
    for number in range(1, 41):
        wide = sum(batch[0].size == (64, 128) for batch in batches[:number])
        assert abs(wide - 0.4 * number) <= 1, "shares are kept all along, not only at the end"
    shown = {key.size for batch in batches for key in batch if key.index == 70}
    assert shown == {(64, 64), (128, 128)}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sizes_do_not_depend_on_world_size_or_start(world: int) -> None:
    plan = BatchSizes(12, 2, world)
    alone = [Counter(buckets().batch(number, 12)) for number in range(9)]
    for first in (0, 5):
        found = [Counter[SampleKey]() for _ in range(9 - first)]
        for rank in range(world):
            stream = micro_batches(buckets(), plan, rank, first)
            for number in range(9 - first):
                for keys in itertools.islice(stream, plan.accumulation):
                    assert len({key.size for key in keys}) == 1
                    found[number].update(keys)
        assert found == alone[first:]


def test_the_nearest_shape_distorts_least() -> None:
    shapes = list(bucket_shapes(["512", "768x512", "512x768", "1024"]))
    assert shapes == [1.0, 1.5, 512 / 768]
    sizes = [(100, 100), (100, 119), (100, 130), (130, 100), (10, 900)]
    assert [nearest_aspect_ratio(size, shapes) for size in sizes] == [0, 0, 1, 2, 1]
    assert bucket_shapes(["512", "1024"]) == {1.0: ((512, 512), (1024, 1024))}


@pytest.fixture
def dataset(tmp_path: Path) -> AnyWordDataset:
    sources = []
    for number, (count, size) in enumerate([(30, (64, 64)), (10, (128, 64))]):
        names = [f"{number}_{i}.png" for i in range(count)]
        for name in names:
            Image.new("RGB", size).save(tmp_path / name)
        sources.append(tmp_path / f"{number}.json")
        items = [{"img_name": name, "annotations": []} for name in names]
        sources[-1].write_text(json.dumps({"data_root": ".", "data_list": items}))
    return AnyWordDataset(load_records(sources)[0], DatasetConfig(resolution=64), 0, load_font_table())


def test_sources_have_their_weights_and_pictures_their_shape(dataset: AnyWordDataset) -> None:
    data = DataConfig(sources=["a", "b"], part="all", weights=[0.5, 2.0], buckets=["64", "128x64"])
    order = make_batch_sampler(dataset, data, seed=0)
    assert order.length == 15 + 20
    keys = [key for number in range(35) for key in order.batch(number, 5)]
    assert {key.size for key in keys if key.index < 30} == {(64, 64)}
    assert {key.size for key in keys if key.index >= 30} == {(64, 128)}
    sample = dataset.sample(31, 0, (64, 128))
    assert sample.image.shape == (3, 64, 128)


def test_turned_pictures_have_the_shape_that_is_shown(dataset: AnyWordDataset) -> None:
    """So have pictures that are found under another spelling of their name."""
    records = list(dataset.records)[30:32]
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (128, 64)).save(records[0].image_path.with_name("turned.jpg"), exif=exif)
    turned = replace(records[0], image_path=records[0].image_path.with_name("turned.jpg"), name="turned.jpg")
    spelled = replace(turned, image_path=turned.image_path.with_name(".\\turned.jpg"), name=".\\turned.jpg")
    for option, size in (("ignore", (64, 128)), ("apply", (128, 64))):
        config = replace(dataset.config, exif=option)
        shown = AnyWordDataset([turned, spelled, records[1]], config, 0, dataset.fonts)
        assert [_cached_size(shown, index) for index in range(3)] == [size, size, (64, 128)]


def test_parts_are_disjoint_complete_and_stay_when_data_is_added(dataset: AnyWordDataset) -> None:
    records = dataset.records
    assert isinstance(records, Records)
    split = (0.6, 0.2, 0.2)
    parts = {name: split_indices(records, split, name) for name in ("train", "val", "test")}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(40))
    assert all(len(indices) for indices in parts.values())
    shuffled = records.select(np.random.default_rng(0).permutation(40)[:25])
    for name, indices in parts.items():
        names = {records.name(int(i)) for i in indices}
        assert {shuffled.name(int(i)) for i in split_indices(shuffled, split, name)} <= names
    assert len(split_indices(records, split, "all")) == 40


def test_a_large_split_has_the_shares_that_were_asked_for() -> None:
    from distill.data.splits import _place

    places = np.array([_place(f"picture_{i}.jpg") for i in range(20000)])
    shares = np.histogram(places, [0, 0.9, 0.95, 1.0])[0] / 20000
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.006)  # four standard deviations


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": [1.0]}, "data.weights has 1 numbers for 2 data.sources"),
        ({"part": "test", "split": [1.0, 0.0, 0.0]}, "data.part=test: none of the 40 pictures"),
        ({"buckets": ["100x64"]}, "100x64: sides must be multiples of 64"),
        ({"buckets": ["wide"]}, "'wide' is no size"),
    ],
)
def test_what_cannot_be_chosen_is_named(dataset: AnyWordDataset, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_batch_sampler(dataset, DataConfig(**{"sources": ["a", "b"], **options}), seed=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "half"}, "data.part='half': choose one of train, val, test, all"),
        ({"split": [0.5, 0.5]}, "data.split"),
        ({"split": [0.5, 0.1, 0.1]}, "add up to 1"),
        ({"weights": [-1.0]}, "data.weights"),
        ({"weights": [0.0]}, "not all 0"),
        ({"latents": "cache"}, "data.latents=cache needs data.cache"),
        ({"latents": "disk"}, "data.latents='disk'"),
        ({"latents": "memory", "buckets": ["512"]}, "data.latents=memory keeps one size"),
        ({"cache_mismatch": "ignore"}, "data.cache_mismatch"),
    ],
)
def test_impossible_data_sections_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataConfig(**options)
