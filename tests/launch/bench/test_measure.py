"""FLOPs and memory of calls whose cost is known."""

from __future__ import annotations

import torch
from torch import nn

from launch.bench.measure import MemoryGrowth, count_flops, median_seconds, weight_bytes
from launch.bench.operations import counted_module_calls

CPU = torch.device("cpu")


def test_flops_of_products_and_attention() -> None:
    a, b, c = torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 5)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert count_flops(lambda: c.addmm_(a, b)) == 2 * 3 * 4 * 5
    q, k = torch.ones(2, 8, 6, 16, requires_grad=True), torch.ones(2, 8, 9, 16)
    product = 2 * 2 * 8 * 6 * 9 * 16
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        assert count_flops(lambda: attention(q, k, k)) == 2 * product
    assert count_flops(lambda: attention(q, k, k).sum().backward()) == (2 + 5) * product


def test_memory_is_the_peak_of_what_lives_at_one_time() -> None:
    x = torch.ones(100)
    with torch.no_grad(), MemoryGrowth(CPU) as chain:
        y = x + 1
        y = y + 1
        y = y.view(10, 10).add_(1)
        del y
        x + 1
    assert chain.peak == 2 * 400
    weight = torch.ones(100, requires_grad=True)
    with MemoryGrowth(CPU) as trained:
        (weight.exp().exp().exp().sum()).backward()
    assert 3 * 400 <= trained.peak <= 5 * 400


def test_shared_weights_count_once() -> None:
    layer = nn.Linear(10, 10, bias=False)
    net = nn.Sequential(layer, nn.Linear(10, 10, bias=False))
    net[1].weight = layer.weight
    assert weight_bytes(net) == 400
    with counted_module_calls() as calls:
        net(torch.ones(1, 10))
    assert calls == {"Sequential": 1, "Linear": 2}


def test_calls_take_turns() -> None:
    order: list[str] = []
    seconds = median_seconds({name: lambda name=name: order.append(name) for name in "ab"}, CPU, repeats=2, warmups=1)
    assert order == ["a", "b"] * 3 and set(seconds) == {"a", "b"} and all(value >= 0 for value in seconds.values())
