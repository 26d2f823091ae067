"""Which activations of the UNet and the WriteNet are recomputed in the backward pass instead of stored."""

from __future__ import annotations

from torch import nn

from anytext2.model.layers import FeedForward

RECOMPUTATIONS = ("none", "selective", "all")
"""`selective`: the feed-forwards of the finer levels, which give back most memory for each millisecond of recomputation
(docs/PERFORMANCE.md, "Memory"). `all`: every block."""


class Recomputing(nn.Module):
    """A network with FeedForwards whose activations may be recomputed."""

    _recomputation = "none"

    @property
    def activation_checkpointing(self) -> str:
        """One of RECOMPUTATIONS. It may be changed at any time and changes no value."""
        return self._recomputation

    @activation_checkpointing.setter
    def activation_checkpointing(self, setting: str) -> None:
        if setting not in RECOMPUTATIONS:
            raise ValueError(f"activation_checkpointing = {setting!r}: must be one of {', '.join(RECOMPUTATIONS)}")
        self._recomputation = setting
        layers = [module for module in self.modules() if isinstance(module, FeedForward)]
        widest = max(layer.width for layer in layers)
        for layer in layers:
            layer.recompute = setting == "selective" and layer.width < widest

    @property
    def recomputes_blocks(self) -> bool:
        return self._recomputation == "all"
