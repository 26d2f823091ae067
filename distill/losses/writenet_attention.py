"""The WriteNet's attention to the text caption: queries and keys of its cross-attentions, recorded during its forward.

They are recorded by hooks on the projections. PEFT replaces a projection as a whole, so the LoRA's share is included.
Nothing is computed inside a hook: under activation checkpointing the recomputed forward must equal the first one.

Shape legend: B batch, C channels, h/w cells of a level, Q = h * w queries, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class AttentionRecorder:
    """Calls the WriteNet and, if it is active, records the attention of each call under the name of a role.

    An inactive recorder only calls the WriteNet, at no cost. It is made for one micro-batch.
    """

    active: bool = False
    recorded: dict[str, WriteAttention] = field(default_factory=dict)

    def write(self, model: AnyText2, conditions: Conditions, role: str, rows: int | None = None) -> Control:
        """The WriteNet's maps for ``conditions``. The attention of the first ``rows`` (None: all) is recorded."""
        if not self.active:
            return model.control_maps(conditions)
        layers = [
            module
            for name, module in model.control_model.named_modules()
            if isinstance(module, CrossAttention) and name.rsplit(".", 1)[-1] in _CROSS
        ]

        def of_batch(tokens_ND: Tensor) -> Tensor:
            return tokens_ND.unflatten(0, (len(conditions.glyph), -1))[:rows]

        with _outputs([projection for layer in layers for projection in (layer.to_q, layer.to_k)]) as outputs:
            control = model.control_maps(conditions)
        self.recorded[role] = tuple(
            Attention(of_batch(outputs[layer.to_q]), of_batch(outputs[layer.to_k]), layer.heads) for layer in layers
        )
        return control

    def of(self, role: str) -> WriteAttention:
        """What was recorded for ``role``, as normal tensors; the student's keep their graph."""
        assert role in self.recorded, f"no WriteNet call was recorded for the {role}"
        return tuple(Attention(_normal(one.query), _normal(one.key), one.heads) for one in self.recorded[role])


def _normal(tensor: Tensor) -> Tensor:
    """Autograd refuses to save inference tensors; their clones are normal ones."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """The last output of each module inside the block."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[module] = output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
