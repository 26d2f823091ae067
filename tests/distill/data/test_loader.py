"""The order of samples: complete, shuffled, the same for every world size and starting point."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from anytext2.core.batch import Sample
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.data.geometry import Size
from distill.data.batch_sampler import SampleKey, ShuffledBatchSampler
from distill.data.loader import BatchSizes, LoadedBatch, UnreadableError, load_batches, micro_batches
from tests.helpers.models.stub_roles import make_sample


def batches(order: ShuffledBatchSampler, plan: BatchSizes, first: int, count: int) -> list[set[tuple[int, int]]]:
    """The samples of `count` global batches, all ranks together."""
    found: list[set[tuple[int, int]]] = [set() for _ in range(count)]
    for rank in range(plan.world):
        stream = micro_batches(order, plan, rank, first)
        for batch in range(count):
            for keys in itertools.islice(stream, plan.accumulation):
                found[batch] |= {(key.epoch, key.index) for key in keys}
    return found


def test_an_epoch_holds_every_sample_once() -> None:
    order = ShuffledBatchSampler(37, seed=5)
    for epoch in (0, 1, 4):
        keys = [order.at(epoch * 37 + offset) for offset in range(37)]
        assert {key.epoch for key in keys} == {epoch}
        assert sorted(key.index for key in keys) == list(range(37))
    assert [order.at(p).index for p in range(37)] != [order.at(37 + p).index for p in range(37)]


def test_order_depends_on_the_seed_alone() -> None:
    first = [ShuffledBatchSampler(50, seed=1).at(p) for p in range(120)]
    assert [ShuffledBatchSampler(50, seed=1).at(p) for p in reversed(range(120))][::-1] == first
    assert [ShuffledBatchSampler(50, seed=2).at(p) for p in range(120)] != first


@pytest.mark.parametrize("world", [2, 3, 4])
def test_global_batches_do_not_depend_on_the_world_size(world: int) -> None:
    order = ShuffledBatchSampler(100, seed=3)
    alone = batches(order, BatchSizes(48, 4, 1), 0, 5)
    assert batches(order, BatchSizes(48, 4, world), 0, 5) == alone
    assert all(len(batch) == 48 for batch in alone)


def test_a_stream_can_start_at_any_batch() -> None:
    order, plan = ShuffledBatchSampler(30, seed=3), BatchSizes(12, 3, 2)
    whole = list(itertools.islice(micro_batches(order, plan, 1, 0), 20))
    assert list(itertools.islice(micro_batches(order, plan, 1, 4), 12)) == whole[8:]


def test_positions_are_each_taken_once_by_one_rank() -> None:
    order, plan = ShuffledBatchSampler(96, seed=0), BatchSizes(48, 4, 3)
    taken: Counter[SampleKey] = Counter()
    for rank in range(3):
        for keys in itertools.islice(micro_batches(order, plan, rank, 0), 2 * plan.accumulation):
            taken.update(keys)
    assert len(taken) == 96 and set(taken.values()) == {1}


@pytest.mark.parametrize(
    ("effective", "micro", "world", "words"),
    [
        (48, 5, 1, ["train.effective_batch=48", "micro_batch=5", "may be 1, 2, 3, 4, 6, 8"]),
        (48, 16, 5, ["does not divide by 5 ranks", "45", "50"]),
        (48, 0, 1, ["train.micro_batch=0"]),
        (0, 4, 1, ["train.effective_batch=0"]),
    ],
)
def test_impossible_arithmetic_names_what_would_work(effective: int, micro: int, world: int, words: list[str]) -> None:
    with pytest.raises(ValueError, match="train") as caught:
        BatchSizes(effective, micro, world)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_empty_data_is_refused() -> None:
    with pytest.raises(ValueError, match="no usable sample"):
        ShuffledBatchSampler(0, seed=0)


class Patchy(AnyWordDataset):
    """Of `total` samples only the `readable` ones can be read."""

    def __init__(self, total: int, readable: set[int]) -> None:
        self.total, self.readable, self.seed = total, readable, 3

    def __len__(self) -> int:
        return self.total

    def sample(self, index: int, epoch: int, size: Size | None = None) -> Sample:
        if index not in self.readable:
            raise SampleError("missing" if index % 2 else "broken", f"picture {index}")
        return make_sample(index)


def read(dataset: Patchy, keys: list[SampleKey]) -> LoadedBatch:
    return next(load_batches(dataset, iter([keys]), workers=0, pin=False))


def test_an_unreadable_sample_is_replaced_and_counted_but_keeps_its_place() -> None:
    keys = [SampleKey(1, 4), SampleKey(1, 5), SampleKey(2, 5), SampleKey(1, 6)]
    loaded = read(Patchy(40, set(range(40)) - {4, 5}), keys)
    assert loaded.keys == tuple(keys) and loaded.skipped["broken"] >= 1 and loaded.skipped["missing"] >= 2
    assert loaded.batch.index[3] == 6 and not {4, 5} & set(loaded.batch.index)
    assert loaded.draws(9).indices == (4, 5, 5, 6) and loaded.draws(9).epochs == (1, 1, 2, 1)
    again = read(Patchy(40, set(range(40)) - {4, 5}), keys)
    assert again.batch.index == loaded.batch.index


@pytest.mark.parametrize("total", [2, 3, 6, 8])
def test_the_last_readable_sample_of_a_small_set_is_found(total: int) -> None:
    for index in range(total):
        assert read(Patchy(total, {total - 1}), [SampleKey(0, index)]).batch.index == (total - 1,)


def test_where_nothing_can_be_read_the_line_says_why() -> None:
    with pytest.raises(UnreadableError, match="data.sources: neither item 5 nor .*'missing'.*data_root") as caught:
        read(Patchy(100, {4}), [SampleKey(0, 4), SampleKey(0, 5)])
    assert "\n" not in str(caught.value)
