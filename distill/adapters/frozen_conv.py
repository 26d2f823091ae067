"""A convolution with frozen weights that keeps only the shape of its input for the backward pass.

PyTorch's own keeps the input itself, which only the gradient of the weights needs. In a student those inputs are an
eighth of what the backward pass would hold in memory.

Shape legend: B batch, C input and E output channels, h/w cells, k/l sides of the kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _FrozenConv(torch.autograd.Function):
    """The convolution of a zero-padded map, with a gradient for the map alone."""

    @staticmethod
    def forward(ctx: Any, x_BChw: Tensor, weight_ECkl: Tensor, bias_E: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight_ECkl)
        ctx.shape, ctx.geometry = x_BChw.shape, geometry
        stride, padding, dilation, groups = geometry
        return torch.conv2d(x_BChw, weight_ECkl, bias_E, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, gradient_BEhw: Tensor) -> tuple[Tensor | None, ...]:
        (weight_ECkl,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        # A compiler would trace through the cache and say so; to it the empty tensor costs nothing.
        of_shape = _of_shape.__wrapped__ if torch.compiler.is_compiling() else _of_shape
        gradient_BChw, _, _ = torch.ops.aten.convolution_backward(
            gradient_BEhw,
            of_shape(ctx.shape, gradient_BEhw.dtype, gradient_BEhw.device),
            weight_ECkl,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [True, False, False],
        )
        return (gradient_BChw, *[None] * 6)


@lru_cache(maxsize=1024)
def _of_shape(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Stands for an input of which only the shape is read: no gradient of the weights is asked for. One element."""
    return torch.empty(1, dtype=dtype, device=device).expand(shape)


class FrozenConv2d(nn.Conv2d):
    """nn.Conv2d with that backward pass. What it cannot do (trained weights, other paddings) goes to nn.Conv2d's."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str) and x.dtype == weight.dtype
        if trained or not plain or not (x.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        return _FrozenConv.apply(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def forget_inputs(model: nn.Module) -> None:
    """Gives the convolutions of `model` that forward. Parameters, names and state dicts stay as they are."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FrozenConv2d
