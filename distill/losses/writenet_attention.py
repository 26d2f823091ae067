"""What the WriteNet attends to in the text caption: queries and keys of its cross-attentions, taken while it writes.

They are taken by hooks on the projections, which a LoRA replaces as a whole, so that what it adds is in them. Nothing
is computed inside a hook: under activation checkpointing the recomputed forward must do what the first one did.

Shape legend: B batch, C channels, h/w cells of a level, Q = h * w queries, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anytext2.core.batch import Conditions, Control
from anytext2.model.layers import CrossAttention

if TYPE_CHECKING:
    from anytext2.model.anytext2 import AnyText2

_CROSS = ("attn2", "attn2x")


@dataclass(frozen=True)
class Attention:
    """Queries [B, Q, D] and keys [B, S, D] of one cross-attention; heads are consecutive slices of D."""

    query: Tensor
    key: Tensor
    heads: int

    def probabilities(self) -> Tensor:
        """Of the tokens, mean over the heads, at least float32 [B, Q, S]."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        query, key = (x.to(dtype).unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.query, self.key))
        with torch.autocast(query.device.type, enabled=False):
            logits = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
            return logits.softmax(dim=-1).mean(dim=1)


WriteAttention = tuple[Attention, ...]
"""Of all cross-attentions of the WriteNet, in its order."""


def write(model: AnyText2, conditions: Conditions, attending: bool) -> tuple[Control, WriteAttention | None]:
    """The WriteNet's maps and, with ``attending``, what it attended to (None otherwise, at no cost).

    What was taken is of the call's own kind: with its graph, or an inference tensor.
    """
    if not attending:
        return model.control_maps(conditions), None
    layers = [
        module
        for name, module in model.control_model.named_modules()
        if isinstance(module, CrossAttention) and name.rsplit(".", 1)[-1] in _CROSS
    ]
    with _outputs([projection for layer in layers for projection in (layer.to_q, layer.to_k)]) as outputs:
        control = model.control_maps(conditions)
    return control, tuple(Attention(outputs[layer.to_q], outputs[layer.to_k], layer.heads) for layer in layers)


def cloned(attention: WriteAttention | None) -> WriteAttention | None:
    """Normal tensors from inference tensors."""
    if attention is None:
        return None
    return tuple(Attention(one.query.clone(), one.key.clone(), one.heads) for one in attention)


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What each module gives back while the block runs."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[module] = output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
