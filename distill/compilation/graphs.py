"""CUDA graphs of network calls: one set for each set of shapes, captured at its first call.

Calls without gradients (the teacher's, and those of a consistency target) share one pool of memory. A call with
gradients keeps its activations until its backward pass, and so has a pool of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from distill.compilation.capture import Capture
from distill.compilation.captured_calls import Call, ForwardCall, TrainingCall
from distill.compilation.intercept import Forward, Layout, Switch, call_key, intercept, split

CAPTURE_LIMIT = 16
"""Captured sets of all networks. A guided teacher and a student need five for each picture size and caption length."""


class GraphedCalls(Switch):
    """The captured calls of a run.

    adapter: names the adapter that computes. captures_training: also calls with gradients; such a call may neither draw
    random numbers nor recompute activations. setting: what asked for graphs, for `say`.
    """

    def __init__(
        self,
        capture: Capture,
        say: Callable[[str], None],
        adapter: Callable[[], Hashable] = lambda: None,
        captures_training: bool = True,
        limit: int = CAPTURE_LIMIT,
        setting: str = "train.compile=graphs",
    ) -> None:
        super().__init__()
        self._capture, self._say, self._adapter, self._limit = capture, say, adapter, limit
        self._captures_training, self._setting = captures_training, setting
        self._networks: dict[nn.Module, list[nn.Parameter]] = {}
        self._trained: dict[nn.Module, list[nn.Parameter]] = {}
        self._refused: set[nn.Module] = set()
        self._calls: dict[Hashable, tuple[ForwardCall | TrainingCall, Any]] = {}
        self._pool: Any = None
        self._places: Sequence[int] = ()
        self._is_full = False

    def capture(self, networks: Sequence[nn.Module]) -> None:
        """Has the calls of these networks inside `active` captured."""
        for network in networks:
            if network not in self._networks:
                self._networks[network] = list(network.parameters())
                if trained := [p for p in network.parameters() if p.requires_grad]:
                    self._trained[network] = trained
                intercept(network, self._run)

    @property
    def count(self) -> int:
        """Number of captured sets."""
        return len(self._calls)

    @contextmanager
    def active(self) -> Iterator[None]:
        """A graph holds the addresses of the weights: where they have moved, all graphs are captured anew."""
        places = [p.data_ptr() for parameters in self._networks.values() for p in parameters]
        if places != self._places:
            self.forget()
            self._places = places
        for call, _ in self._calls.values():
            if isinstance(call, TrainingCall):
                call.is_pending = False  # of a micro-step that ended without its backward pass
        with super().active():
            yield

    def keep_on(self) -> None:
        """From now on calls are captured outside of `active`, too. Whoever moves weights calls `forget`."""
        self.is_on = True

    def forget(self) -> None:
        """Drops all graphs. They hold the addresses of the weights."""
        self._calls.clear()
        self._pool = None  # a pool ends with its last graph

    def _run(self, forward: Forward, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.is_on or network in self._refused:
            return forward(network, *args, **kwargs)
        tensors, layout = split(args, kwargs)
        trains = torch.is_grad_enabled() and (network in self._trained or any(t.requires_grad for t in tensors))
        if trains and not self._captures_training:
            return forward(network, *args, **kwargs)
        key = (network, self._adapter(), call_key(tensors, layout))
        if key not in self._calls and not self._add(key, forward, network, tensors, layout, trains):
            return forward(network, *args, **kwargs)
        call, structure = self._calls[key]
        if isinstance(call, TrainingCall) and call.is_pending:
            return forward(network, *args, **kwargs)
        return tree_unflatten(call(tensors), structure)

    def _add(
        self, key: Hashable, forward: Forward, network: nn.Module, tensors: list[Tensor], layout: Layout, trains: bool
    ) -> bool:
        """Captures a call. False where it stays eager: with too many shapes, or where CUDA refuses."""
        if len(self._calls) >= self._limit:
            if not self._is_full:
                self._say(f"{self._setting}: {self._limit} sets of shapes are captured, more run eagerly")
            self._is_full = True
            return False
        structures: list[Any] = []

        def call(inputs: Sequence[Tensor]) -> list[Tensor]:
            arguments, named = layout.arguments(inputs)
            outputs, structure = tree_flatten(forward(network, *arguments, **named))
            structures[:] = [structure]
            return outputs

        try:
            captured = self._make(network, call, tensors, trains)
        except RuntimeError as error:  # CUDA's errors, of memory too
            reason = str(error).strip().splitlines()[0][:200]
            self._say(f"{self._setting}: {type(network).__name__} cannot be captured ({reason}) and runs eagerly")
            self._refused.add(network)
            if not any(isinstance(call, ForwardCall) for call, _ in self._calls.values()):
                self._pool = None
            return False
        self._calls[key] = captured, structures[0]
        return True

    def _make(self, network: nn.Module, call: Call, tensors: list[Tensor], trains: bool) -> ForwardCall | TrainingCall:
        if trains:
            trained = self._trained.get(network, [])
            return TrainingCall(self._capture, call, tensors, network, trained, self._capture.new_pool())
        self._pool = self._pool or self._capture.new_pool()
        return ForwardCall(self._capture, call, tensors, self._pool)
