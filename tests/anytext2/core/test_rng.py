"""Random numbers depend on (seed, epoch, index, purpose) and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from anytext2.core.rng import Draws, choice, hash_rng, numpy_rng, permutation, seed_for, torch_generator, uniform


def test_seed_is_the_digest_of_the_tuple() -> None:
    digest = hashlib.blake2b(b"7\n2\n31\nnoise", digest_size=8).digest()
    assert seed_for(7, 2, 31, "noise") == int.from_bytes(digest, "little") // 2


def test_seeds_differ_in_every_argument_and_fit_63_bits() -> None:
    seeds = [seed_for(s, e, i, p) for s in range(4) for e in range(4) for i in range(40) for p in ("a", "b", "1\n2")]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0 and 2**62 < max(seeds) < 2**63


@pytest.mark.parametrize("make", [numpy_rng, torch_generator])
def test_generators_start_over(make) -> None:
    def first(*args) -> float:
        generator = make(*args)
        return float(torch.rand((), generator=generator)) if make is torch_generator else generator.random()

    assert first(1, 2, 3, "x") == first(1, 2, 3, "x") != first(1, 2, 4, "x")


def test_rows_do_not_depend_on_the_batch() -> None:
    together = Draws(5, epochs=(0, 0, 1), indices=(8, 9, 8))
    alone = Draws(5, epochs=(0,), indices=(9,))
    assert torch.equal(together.normal("noise", (2, 3))[1], alone.normal("noise", (2, 3))[0])
    assert torch.equal(together.uniform("w", 5, 15)[1], alone.uniform("w", 5, 15)[0])
    assert torch.equal(together.integers("t", 0, 1000)[1], alone.integers("t", 0, 1000)[0])
    assert not torch.equal(together.normal("noise", (4,))[0], together.normal("noise", (4,))[2])  # another epoch


def test_shapes_dtypes_and_distributions() -> None:
    draws = Draws(0, epochs=(0,) * 4000, indices=tuple(range(4000)))
    assert draws.size == 4000
    normal, uniform, integers = draws.normal("n", (2,)), draws.uniform("u", 5, 15), draws.integers("i", 3, 7)
    assert (normal.shape, normal.dtype) == ((4000, 2), torch.float32)
    assert (uniform.shape, uniform.dtype) == ((4000,), torch.float32)
    assert (integers.shape, integers.dtype) == ((4000,), torch.int64)
    assert abs(float(normal.mean())) < 0.05 and abs(float(normal.std()) - 1) < 0.05
    assert float(uniform.min()) >= 5 and float(uniform.max()) < 15 and abs(float(uniform.mean()) - 10) < 0.2
    counts = np.bincount(integers.numpy(), minlength=7)
    assert counts[:3].sum() == 0 and counts[3:].min() > 800
    assert draws.normal("n", (2,), dtype=torch.float16).dtype == torch.float16


def test_hash_rng_is_uniform_and_its_own_for_every_draw() -> None:
    rng = hash_rng(1, 2, 3, "edge")
    numbers = np.array([rng.random() for _ in range(20000)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-squared, 19 degrees of freedom: 1 in 1400
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    again = hash_rng(1, 2, 3, "edge")
    assert [again.random() for _ in range(20)] == numbers[:20].tolist()
    others = [
        hash_rng(*key).random() for key in ((0, 2, 3, "edge"), (1, 0, 3, "edge"), (1, 2, 0, "edge"), (1, 2, 3, "e"))
    ]
    assert len({numbers[0], *others}) == 5


def test_picks_and_orders_are_even() -> None:
    rng = hash_rng(0, 0, 0, "order")
    picks = np.bincount([choice(rng, 5) for _ in range(5000)], minlength=5)
    assert len(picks) == 5 and np.abs(picks - 1000).max() < 150
    firsts = np.bincount([permutation(rng, 4)[0] for _ in range(4000)], minlength=4)
    assert np.abs(firsts - 1000).max() < 150
    assert sorted(permutation(rng, 9)) == list(range(9)) and permutation(rng, 0) == []
    assert all(2.0 <= uniform(rng, 2.0, 3.0) < 3.0 for _ in range(100))
