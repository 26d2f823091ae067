"""A network's call on static buffers: inputs are copied in, the recorded kernels run, outputs are copied out.

Nobody outside holds a buffer, so that the next replay overwrites nothing that is still in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distill.compilation.capture import Capture
from distill.compilation.comparison import require_same

GRADIENT = 0.1
"""The gradient of the outputs in the runs before a capture; of an ordinary size, for values to compare."""

Call = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""A network's call with everything but its tensors filled in."""


class ForwardCall:
    """A call without gradients."""

    def __init__(self, capture: Capture, call: Call, inputs: Sequence[Tensor], pool: Any) -> None:
        """Raises RuntimeError where the call cannot be captured, or a replay gives something else."""
        buffers = self._inputs = static_copies(inputs)
        expected = capture.warm_up(lambda: call(buffers))
        self._captured = capture.record(lambda: call(buffers), pool)
        self._captured.replay()
        require_same((self._captured.outputs, expected))

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        _copy_all(self._inputs, inputs)
        self._captured.replay()
        return _clones(self._captured.outputs)


class TrainingCall:
    """A call with its backward pass. Activations live in the graph's memory between the two.

    A second forward before the backward of the first would overwrite them: ask `is_pending` before a call.
    """

    def __init__(
        self,
        capture: Capture,
        call: Call,
        inputs: Sequence[Tensor],
        network: nn.Module,
        trained: Sequence[nn.Parameter],
        pool: Any,
    ) -> None:
        """trained: the network's parameters that get gradients. pool: of this call alone. Raises as `ForwardCall`."""
        self.is_pending = False
        self._network, self._parameters = network, list(trained)
        # Autograd remembers on which stream a parameter was first used, for as long as any graph or hook uses it.
        # Waiting for that stream ends a capture, so what is captured has leaves of its own in the same memory.
        self._leaves = [nn.Parameter(p.detach()) for p in trained]
        self._inputs = [
            buffer.requires_grad_(given.requires_grad)
            for buffer, given in zip(static_copies(inputs), inputs, strict=True)
        ]
        self._sources = [t for t in (*self._inputs, *self._leaves) if t.requires_grad]
        self._is_used: list[bool] = []
        self._call = call
        self._alive: list[Tensor] = []
        self._gradients_in: list[Tensor] = []
        expected = capture.warm_up(self._both)
        self._forward = capture.record(self._run_forward, pool)
        self._backward = capture.record(self._run_backward, pool)
        self._alive = []
        self._forward.replay()
        self._backward.replay()
        count = len(self._forward.outputs)
        require_same((self._forward.outputs, expected[:count]), (self._backward.outputs, expected[count:]))

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.is_pending = True
        return list(_Replayed.apply(self, len(self._inputs), *inputs, *self._parameters))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, without a graph."""
        _copy_all(self._inputs, inputs)
        self._forward.replay()
        return tuple(_clones(self._forward.outputs))

    def backward(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of inputs and parameters, in order, given those of the outputs."""
        _copy_all(self._gradients_in, gradients)
        self._backward.replay()
        self.is_pending = False
        found, is_used = iter(_clones(self._backward.outputs)), iter(self._is_used)
        return [next(found) if t.requires_grad and next(is_used) else None for t in (*self._inputs, *self._parameters)]

    def _run_forward(self) -> list[Tensor]:
        self._alive = []  # the graph of the run before
        with torch.enable_grad(), parameters_replaced(self._network, self._parameters, self._leaves):
            self._alive = list(self._call(self._inputs))
        return [output.detach() for output in self._alive]

    def _run_backward(self) -> list[Tensor]:
        gradients = torch.autograd.grad(self._alive, self._sources, self._gradients_in, allow_unused=True)
        self._is_used = [gradient is not None for gradient in gradients]
        return [gradient for gradient in gradients if gradient is not None]

    def _both(self) -> list[Tensor]:
        outputs = self._run_forward()
        self._gradients_in = self._gradients_in or [torch.full_like(output, GRADIENT) for output in outputs]
        return [*outputs, *self._run_backward()]


class _Replayed(torch.autograd.Function):
    """Ties a `TrainingCall` into the graph of the loss, so that parameters get their gradients as usual."""

    @staticmethod
    def forward(ctx: Any, call: TrainingCall, n_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return call.forward(tensors[:n_inputs])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.call.backward(gradients)


@contextmanager
def parameters_replaced(
    network: nn.Module, parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]
) -> Iterator[None]:
    """The network with these tensors in place of its parameters, inside."""
    given: dict[Tensor | None, Tensor] = dict(zip(parameters, tensors, strict=True))
    places = [
        (module._parameters, name, p)
        for module in network.modules()
        for name, p in module._parameters.items()
        if p in given
    ]
    try:
        for own, name, p in places:
            own[name] = given[p]  # type: ignore[assignment]
        yield
    finally:
        for own, name, p in places:
            own[name] = p


def static_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that keep their place in memory; normal tensors also in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        copies = [torch.empty_like(t, requires_grad=False) for t in tensors]
    _copy_all(copies, tensors)
    return copies


def _clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    copies = [torch.empty_like(t) for t in tensors]
    _copy_all(copies, tensors)
    return copies


@torch.no_grad()
def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """One kernel for all tensors of a dtype where there is one."""
    torch._foreach_copy_(list(targets), list(sources))
