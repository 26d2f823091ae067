"""A linear layer with its LoRA branch in few kernels: y = x W' + b + s (x A') B', the last product added in place.

PEFT's own layer computes the two branches apart, casts, scales and adds. This one has at most 0.6 times its operations,
forward and backward together, and rounds once in half precision. At small batches a GPU waits for the dispatch of each.

Shape legend: N tokens, D input width, E output width, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LoraLinear(torch.autograd.Function):
    """The sum of both branches, with gradients for x, A and B. W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_ED: Tensor, bias_E: Tensor | None, a_RD: Tensor, b_ER: Tensor, scale: float
    ) -> Tensor:
        x_ND = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        hidden_NR = torch.mm(x_ND, a_RD.t())
        weight_DE = weight_ED.t()
        y_NE = torch.mm(x_ND, weight_DE) if bias_E is None else torch.addmm(bias_E, x_ND, weight_DE)
        y_NE = _plus_product(y_NE, hidden_NR, b_ER.t(), scale)
        ctx.save_for_backward(x_ND, hidden_NR, weight_ED, a_RD, b_ER)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NE if x.dim() == 2 else y_NE.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, hidden_NR, weight_ED, a_RD, b_ER = ctx.saved_tensors
        is_flat = gradient.dim() == 2
        gradient_NE = gradient if is_flat else gradient.reshape(-1, gradient.shape[-1])
        # The scale is applied where the smallest matrix is.
        hidden_gradient_NR = torch.mm(gradient_NE, b_ER)
        for_b = hidden_NR
        if ctx.scale != 1.0:
            hidden_gradient_NR, for_b = hidden_gradient_NR * ctx.scale, hidden_NR * ctx.scale
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = _plus_product(torch.mm(gradient_NE, weight_ED), hidden_gradient_NR, a_RD)
            x_gradient = x_gradient if is_flat else x_gradient.view(ctx.shape)
        return (
            x_gradient,
            None,
            None,
            torch.mm(hidden_gradient_NR.t(), x_ND) if ctx.needs_input_grad[3] else None,
            torch.mm(gradient_NE.t(), for_b) if ctx.needs_input_grad[4] else None,
            None,
        )


def _plus_product(y: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """y + scale * left @ right, in the memory of y.

    Not in place in compiled code: there torch 2.11 loses the gradient of an output that a Function has changed. And not
    as a sum, of which torch 2.13 generates wrong code for CPUs.
    """
    if torch.compiler.is_compiling():
        return torch.addmm(y, left, right, alpha=scale)
    return y.addmm_(left, right, alpha=scale)


class FusedLinear(PeftLinear):
    """PEFT's layer with another forward. Whatever the fused one cannot do (dropout, DoRA, autocast) goes to PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapters = self.active_adapters
        if len(adapters) != 1 or args or kwargs or not self._is_plain(adapters[0], x):
            return super().forward(x, *args, **kwargs)
        name, base = adapters[0], self.base_layer
        scale = self.scaling[name]
        return _LoraLinear.apply(x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, scale)

    def _is_plain(self, name: str, x: Tensor) -> bool:
        if name not in self.lora_A or name in self.lora_variant or self.disable_adapters or self.merged:
            return False
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        has_dropout = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        same_dtype = x.dtype == weight.dtype == self.lora_A[name].weight.dtype
        return same_dtype and not (has_dropout or weight.requires_grad or torch.is_autocast_enabled(x.device.type))


def fuse_linear_layers(model: nn.Module) -> None:
    """Gives PEFT's linear layers in `model` the fused forward. Parameters, names and state dicts stay as they are."""
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = FusedLinear
