"""A convolution with frozen weights: nn.Conv2d's values and gradients, without its input in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.adapters.frozen_conv import FrozenConv2d, forget_inputs


def pair(trained: bool = False, **options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A frozen convolution and PyTorch's own with the same weights, in float64."""
    own = nn.Conv2d(4, 6, 3, **options).double().requires_grad_(trained)
    frozen = nn.Sequential(nn.Conv2d(4, 6, 3, **options).double()).requires_grad_(trained)
    frozen.load_state_dict({f"0.{name}": tensor for name, tensor in own.state_dict().items()})
    forget_inputs(frozen)
    assert isinstance(frozen[0], FrozenConv2d)
    return frozen[0], own


def saved_shapes(conv: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):  # type: ignore[func-returns-value]
        conv(x)
    return shapes


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": 2, "padding": 1, "bias": False}, {"groups": 2}, {"padding": 1, "dilation": 2}],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_pytorchs(options: dict[str, Any], memory_format: torch.memory_format) -> None:
    frozen, own = pair(**options)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    results = []
    for conv in (frozen.to(memory_format=memory_format), own):
        y = conv(x)
        results.append((y, *torch.autograd.grad((y * y.detach().cos()).sum(), x)))
    for given, wanted in zip(*results, strict=True):
        assert torch.allclose(given, wanted, rtol=1e-12, atol=1e-12)


def test_the_input_is_not_kept() -> None:
    frozen, own = pair()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, requires_grad=True) * 1.0
    assert saved_shapes(own, x) == [(1, 4, 8, 8), (6, 4, 3, 3)]
    assert saved_shapes(frozen, x) == [(6, 4, 3, 3)]


@pytest.mark.parametrize("options", [{"trained": True}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_what_it_cannot_do_is_left_to_pytorch(options: dict[str, Any]) -> None:
    frozen, own = pair(**options)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.equal(frozen(x), own(x))
    assert saved_shapes(frozen, x * 1.0) == saved_shapes(own, x * 1.0)


def test_without_gradients_nothing_changes() -> None:
    frozen, own = pair()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.equal(frozen(x), own(x))
    assert not frozen(x).requires_grad and frozen.state_dict().keys() == own.state_dict().keys()
