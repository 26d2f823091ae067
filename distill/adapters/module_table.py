"""The layers of a model by family, what each preset of lora.targets adapts, and which names a model has no place for.

Nothing here needs weights: a model on the meta device will do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from distill.adapters.targets import ADAPTED, TARGET_PRESETS, lora_targets

NETWORKS = {
    "UNet": "model.diffusion_model.",
    "WriteNet": "control_model.",
    "VAE": "first_stage_model.",
    "text tower": "cond_stage_model.",
    "text embedding": "embedding_manager.",
    "recogniser": "text_predictor.",
}
"""Networks by the beginning of their layers' paths."""

FAMILIES = {
    "self-attention (attn1)": r"\.attn1\.",
    "cross-attention, image caption (attn2)": r"\.attn2\.",
    "self-attention, text (attn1x)": r"\.attn1x\.",
    "cross-attention, text caption (attn2x)": r"\.attn2x\.",
    "feed-forward": r"\.ff\.|\.mlp\.",
    "projection around transformers": r"\.proj_(in|out)$",
    "zero convolutions": r"zero_convs|middle_block_out",
    "attention (one head)": r"\.mid\.attn_1\.",
    "first and last convolutions": r"\.input_blocks\.0\.0$|\.out\.2$|\.conv_(in|out)$|quant_conv$",
    "glyph and position encoders": r"glyph_block|position_block|fuse_block",
    "residual blocks": r"\.(in_layers|out_layers|emb_layers|skip_connection|conv[12]|nin_shortcut)\b",
    "time embedding": r"time_embed",
    "down- and upsampling": r"\.op$|\.conv$",
}
"""Families by a pattern that their layers' paths contain; the first that matches counts."""
OTHER, UNSORTED = "other", "all layers"
_SORTED = ("UNet", "WriteNet", "VAE")
"""Networks whose layers have families; those of the others have names of their own."""


@dataclass(frozen=True)
class Layer:
    """A Linear or Conv2d. shape: of its weight. adaptable: how many values a LoRA of rank 1 has there."""

    path: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    adaptable: int

    @property
    def network(self) -> str:
        return next((name for name, start in NETWORKS.items() if self.path.startswith(start)), OTHER)

    @property
    def family(self) -> str:
        if self.network not in _SORTED:
            return UNSORTED
        return next((name for name, pattern in FAMILIES.items() if re.search(pattern, self.path)), OTHER)


@dataclass(frozen=True)
class Adapted:
    """What one choice of lora.targets adapts: its layers, and the trained values for each rank."""

    name: str
    paths: tuple[str, ...]
    trained_per_rank: int


@dataclass(frozen=True)
class Names:
    """Module paths of somebody's list: present ones are layers of the model that may carry an adapter.

    elsewhere: they exist, but an adapter there learns nothing, or they are no Linear or Conv2d. absent: not in the
    model.
    """

    present: tuple[str, ...]
    elsewhere: tuple[str, ...]
    absent: tuple[str, ...]


def find_layers(model: nn.Module) -> list[Layer]:
    """Every Linear and Conv2d of the model, in its order."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            shape = tuple(module.weight.shape)
            count = sum(p.numel() for p in module.parameters(recurse=False))
            # LoRA's A has the inputs of the weight, its B the outputs.
            adaptable = module.weight[0].numel() + shape[0]
            kind = "Linear" if isinstance(module, nn.Linear) else "Conv2d"
            found.append(Layer(path, kind, shape, count, adaptable))
    return found


def by_family(layers: Iterable[Layer]) -> dict[tuple[str, str, str], list[Layer]]:
    """The layers by network, family and kind; networks and families in the order of their tables."""
    groups: dict[tuple[str, str, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.network, layer.family, layer.kind), []).append(layer)
    networks, families = [*NETWORKS, OTHER], [*FAMILIES, OTHER, UNSORTED]
    order = sorted(groups, key=lambda key: (networks.index(key[0]), families.index(key[1]), key[2]))
    return {key: groups[key] for key in order}


def shapes(layers: Iterable[Layer]) -> str:
    """The distinct shapes with their counts, most frequent first, as in `12 of 320x320`."""
    counts = Counter("x".join(map(str, layer.shape)) for layer in layers)
    listed = [f"{count} of {shape}" for shape, count in counts.most_common()]
    return ", ".join(listed[:4]) + (f", {len(listed) - 4} more shapes" if len(listed) > 4 else "")


def adapted_by(model: nn.Module, layers: Sequence[Layer], targets: str) -> Adapted:
    """What lora.targets=`targets` adapts. Raises ValueError as `lora_targets`."""
    paths = lora_targets(model, targets)
    chosen = set(paths)
    return Adapted(targets, tuple(paths), sum(layer.adaptable for layer in layers if layer.path in chosen))


def adapted_by_presets(model: nn.Module, layers: Sequence[Layer]) -> list[Adapted]:
    """`adapted_by` of every preset."""
    return [adapted_by(model, layers, preset) for preset in TARGET_PRESETS]


def sort_names(model: nn.Module, layers: Sequence[Layer], names: Iterable[str]) -> Names:
    """Which of these module paths the model has."""
    adaptable = {layer.path for layer in layers if layer.path.startswith(ADAPTED)}
    modules = {path for path, _ in model.named_modules()}
    distinct = set(names)
    there = distinct & adaptable
    return Names(
        tuple(layer.path for layer in layers if layer.path in there),
        tuple(sorted((distinct & modules) - adaptable)),
        tuple(sorted(distinct - modules)),
    )


def listed_names(text: str) -> list[str]:
    """Module paths in a text: one on each line, or quoted in a list of Python's. `#` begins a comment."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    quoted = [name for line in lines for name in re.findall(r"[\"']([\w.]+)[\"']", line)]
    return quoted or [line for line in lines if re.fullmatch(r"[\w.]+", line)]
