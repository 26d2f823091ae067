"""Puts a function in the place of a module's forward, without a change of its parameters, names or state dict."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Forward = Callable[..., Any]
"""The forward of a class: takes the module and its arguments."""

_RUN = "_intercepted_by"
_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def intercept(module: nn.Module, run: Callable[..., Any]) -> None:
    """From now on a call of `module` is ``run(forward, module, *args, **kwargs)`` with the forward of its class.

    A module is intercepted once; see `release`.
    """
    assert _RUN not in module.__dict__, f"{type(module).__name__} is intercepted already"
    module.__class__ = _intercepted(type(module))
    module.__dict__[_RUN] = run


def release(network: nn.Module) -> None:
    """Gives every module of a network the forward of its class again."""
    for module in network.modules():
        if module.__dict__.pop(_RUN, None) is not None:
            module.__class__ = type(module).__mro__[1]


def _intercepted(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass, so that `isinstance` answers as before and a copy of the module runs on its own weights.

    One for each class: torch compiles a block again for a module of another class.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[_RUN](kind.forward, self, *args, **kwargs)

    if kind not in _SUBCLASSES:
        _SUBCLASSES[kind] = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return _SUBCLASSES[kind]


class Switch:
    """Whether intercepted modules take their fast path. Outside of a micro-step all of them run as written."""

    def __init__(self) -> None:
        self.is_on = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """The fast path inside. It spans forward and backward: a recomputed block must run as it ran at first."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


class Both(Switch):
    """Two fast paths, one inside the other: compiled blocks within a captured network."""

    def __init__(self, outer: Switch, inner: Switch) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner

    @contextmanager
    def active(self) -> Iterator[None]:
        """As `Switch.active`."""
        with super().active(), self.outer.active(), self.inner.active():
            yield


@dataclass(frozen=True)
class Layout:
    """The arguments of a call without its tensors."""

    structure: TreeSpec
    places: tuple[int, ...]
    others: tuple[Any, ...]

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with these tensors in place of its own."""
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.structure)
        return args, kwargs


def split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], Layout]:
    """The tensors of a call's arguments, in order, and everything else."""
    leaves, structure = tree_flatten((args, kwargs))
    places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    others = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return [leaves[place] for place in places], Layout(structure, places, others)


def call_key(tensors: Sequence[Tensor], layout: Layout) -> Hashable:
    """Equal for calls that one program can serve, apart from weights and adapter."""
    mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _fp16_accumulation())
    return mode, tuple((t.shape, t.dtype, t.requires_grad) for t in tensors), layout.places, layout.others


def _fp16_accumulation() -> bool:
    """Whether matrix products of half precision accumulate in it; False in releases of torch without the setting."""
    return bool(getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False))
