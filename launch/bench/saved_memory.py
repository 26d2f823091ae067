"""What the backward pass of the student keeps in memory, and what recomputing a part of the network would cost.

Nothing is allocated or computed: the networks run on fake tensors, which have shapes but no values. The bytes are those
of what autograd saves; the cost is a roofline estimate, for each operation the longer of its arithmetic and its memory
traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from anytext2.core.batch import Conditions
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.layers import CrossAttention, FeedForward, ResBlock, TimestepEmbedSequential, TransformerBlock
from anytext2.model.text_encoder import CONTEXT_LENGTH
from distill.adapters.frozen_conv import FrozenConv2d
from distill.config.schema import Recipe
from distill.inference.model import make_schedule
from distill.training.build import make_objective, make_roles

FLOPS, BANDWIDTH = 165e12, 1.008e12
"""Of an RTX 4090: fp16 matrix products with fp32 accumulation, and bytes a second."""
DTYPE = torch.bfloat16
"""Two bytes, as fp16 has; fake operations of a CPU exist for it."""


@dataclass(frozen=True)
class Student:
    """The student on fake tensors, its conditions, and the mode in which they live."""

    model: AnyText2
    conditions: Conditions
    latent: Tensor
    mode: FakeTensorMode

    def use_recomputation(self, setting: str) -> None:
        """See distill/config/schema.py."""
        for network in (self.model.model.diffusion_model, self.model.control_model):
            network.activation_checkpointing = setting

    def saved_bytes(self, cost: RooflineMode | None = None) -> int:
        """Bytes of the tensors that a forward pass of WriteNet and UNet keeps for the backward pass, each once."""
        saved = SavedTensors(self.model)
        with self.mode, cost or nullcontext(), saved:
            control = self.model.control_maps(self.conditions)
            t = torch.zeros(len(self.latent))
            self.model.predict_noise(self.latent, t, self.conditions.image_context, control)
        return saved.bytes


def make_student(recipe: Recipe, batch: int, size: int) -> Student:
    """The student of a recipe for `batch` pictures of `size` px."""
    config = load_model_config(recipe.model.config)
    model = build_model(config, "meta", DTYPE)
    roles, _ = make_roles(model, make_objective(recipe, make_schedule(config)), recipe)
    mode = FakeTensorMode()
    with mode:
        for module in roles.wrapped.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    fake = torch.empty(p.shape, dtype=DTYPE)
                    module._parameters[name] = nn.Parameter(fake, p.requires_grad)
        latent = torch.empty(batch, *model.latent_shape(size, size), dtype=DTYPE)
        context = torch.empty(batch, CONTEXT_LENGTH, config.unet.context_dim, dtype=DTYPE)
        position = torch.empty(batch, 1, size, size, dtype=DTYPE)
        scale = config.writenet.glyph_scale
        glyph = torch.empty(batch, 1, size * scale, size * scale, dtype=DTYPE)
    return Student(roles.model, Conditions(context, context, glyph, position, latent), latent, mode)


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of storages that autograd saves inside its context, apart from those of a module's weights."""

    def __init__(self, module: nn.Module) -> None:
        weights = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
        self._kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                self._kept[storage._cdata] = storage
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())


class RooflineMode(TorchDispatchMode):
    """Adds up the estimated seconds of the operations inside its context."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.flops = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        is_view = not func._schema.is_mutable and {_key(x) for x in made} & {_key(x) for x in given}
        if not is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = int(count(*args, **(kwargs or {}), out_val=out)) if count else 0
            traffic = sum(x.numel() * x.element_size() for x in (*given, *made))
            self.flops += flops
            self.seconds += max(flops / FLOPS, traffic / BANDWIDTH)
        return out


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def plain_convolutions(model: nn.Module) -> Iterator[None]:
    """Inside, frozen convolutions keep their inputs, as PyTorch's own do."""
    changed = [module for module in model.modules() if isinstance(module, FrozenConv2d)]
    for module in changed:
        module.__class__ = nn.Conv2d  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = FrozenConv2d


KINDS: dict[str, Callable[[str, nn.Module], bool]] = {
    "feed-forward": lambda name, module: isinstance(module, FeedForward),
    "self-attention": lambda name, module: isinstance(module, CrossAttention) and ".attn1" in name,
    "cross-attention": lambda name, module: isinstance(module, CrossAttention) and ".attn2" in name,
    "residual block": lambda name, module: isinstance(module, ResBlock),
    "transformer": lambda name, module: isinstance(module, TransformerBlock),
    "whole block": lambda name, module: isinstance(module, TimestepEmbedSequential),
}
"""The parts of a network that may be recomputed alone."""


@dataclass(frozen=True)
class Part:
    """All modules of one kind at one resolution: bytes that recomputing them saves, and seconds of their forward."""

    kind: str
    cells: int
    count: int
    saved: int
    seconds: float

    @property
    def ratio(self) -> float:
        """GB saved for each second of recomputation."""
        return self.saved / 1e9 / self.seconds


def measure_parts(student: Student) -> list[Part]:
    """Every kind of module at every resolution, recomputed alone."""
    total, parts = student.saved_bytes(), []
    for (kind, cells), modules in _groups(student).items():
        with recomputed(module for module, _ in modules):
            saved = total - student.saved_bytes()
        parts.append(Part(kind, cells, len(modules), saved, sum(seconds for _, seconds in modules)))
    return sorted(parts, key=lambda part: -part.ratio)


def _groups(student: Student) -> dict[tuple[str, int], list[tuple[nn.Module, float]]]:
    """The modules by kind and cells of a map, each with the estimated seconds of its forward."""
    cost, handles = RooflineMode(), []
    groups: dict[tuple[str, int], list[tuple[nn.Module, float]]] = {}
    started: dict[nn.Module, float] = {}

    def start(module: nn.Module, inputs: Any) -> None:
        started[module] = cost.seconds

    def end(kind: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            cells = inputs[0][0, 0].numel() if inputs[0].dim() == 4 else len(inputs[0]) // len(student.latent)
            groups.setdefault((kind, cells), []).append((module, cost.seconds - started[module]))

        return hook

    for name, module in student.model.named_modules():
        for kind, is_kind in KINDS.items():
            if is_kind(name, module):
                handles += [module.register_forward_pre_hook(start), module.register_forward_hook(end(kind))]
    student.saved_bytes(cost)
    for handle in handles:
        handle.remove()
    return groups


@contextmanager
def recomputed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the modules' activations are recomputed in the backward pass."""
    changed = list(modules)
    for module in changed:
        module.forward = _checkpointed(module.forward)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)
