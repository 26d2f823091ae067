"""Gradients of an update: summed on this rank over the micro-batches, then shared out among the ranks once.

DeepSpeed's ZeRO-2 reduces after every micro-batch, with a hook for each parameter. For weights as few as a LoRA's that
costs more than it saves. Here the gradients are views of one flat tensor for each parameter group, and one reduction
an update hands each rank the part that its optimizer needs. Between the micro-batches a rank holds the whole gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distill.runtime.gloo import sum_parts

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _Part(list[Tensor]):
    """What ZeRO-2's step expects of a group's gradients: a list, and the same as one flat tensor."""

    def __init__(self, flat: Tensor) -> None:
        super().__init__([flat])
        self.flat_partition = flat


class GradientSum:
    """The gradients of all parameter groups. engine, zero: DeepSpeed's, whose own reduction is switched off.

    dtype: `fp32`, `fp16` or `bf16`, in which gradients travel between the ranks.
    """

    def __init__(self, engine: Any, zero: Any, dtype: str = "fp32") -> None:
        self._zero, self._dtype = zero, DTYPES[dtype]
        self._ranks = dist.get_world_size()
        for hook in zero._grad_acc_hooks:
            hook.remove()
        engine.enable_backward_allreduce = False
        weights = zero.bit16_groups_flat
        # Autograd adds to the views of `_added`, in the parameters' precision; the sum over micro-batches is float32.
        self._added = [torch.zeros_like(flat) for flat in weights]
        self._sums = [flat if flat.dtype == torch.float32 else flat.float() for flat in self._added]
        self._is_attached = False
        self._views = [_views(flat, group) for flat, group in zip(self._added, zero.bit16_groups, strict=True)]

    def attach(self) -> None:
        """Before each backward pass; before the first one of an update all gradients become zero."""
        if self._is_attached:
            return
        self._is_attached = True
        for total, group, views in zip(self._sums, self._zero.bit16_groups, self._views, strict=True):
            total.zero_()
            for p, view in zip(group, views, strict=True):
                p.grad = view

    def add(self) -> None:
        """After each backward pass."""
        for total, added in zip(self._sums, self._added, strict=True):
            if total is not added:
                total.add_(added)
                added.zero_()

    def share_out(self) -> None:
        """After the last micro-batch: gives ZeRO-2 this rank's part of the mean over the ranks. Collective."""
        self._is_attached = False  # ZeRO-2's step clears the parameters' gradients
        for number, total in enumerate(self._sums):
            self._zero.averaged_gradients[number] = _Part(self._mean_part(total))

    def _mean_part(self, total: Tensor) -> Tensor:
        """This rank's part of the mean over the ranks, float32. Collective."""
        if self._ranks == 1:
            return total
        if self._dtype == torch.float32:
            return self._sum_part(total).div_(self._ranks)
        return self._sum_part((total / self._ranks).to(self._dtype)).float()  # divided first: 16 bits overflow

    def _sum_part(self, sent: Tensor) -> Tensor:
        if dist.get_backend() == "gloo":
            return sum_parts(sent)
        part = torch.empty(sent.numel() // self._ranks, dtype=sent.dtype, device=sent.device)
        dist.reduce_scatter_tensor(part, sent)
        return part


class ReducedByDeepSpeed:
    """In place of a `GradientSum` where DeepSpeed reduces after each micro-batch itself."""

    def attach(self) -> None: ...

    def add(self) -> None: ...

    def share_out(self) -> None: ...


def _views(flat: Tensor, group: list[Tensor]) -> list[Tensor]:
    """The places of the group's parameters in the flat tensor, in their shapes."""
    views, start = [], 0
    for p in group:
        views.append(flat.narrow(0, start, p.numel()).view(p.shape))
        start += p.numel()
    return views
