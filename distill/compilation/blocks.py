"""Regional compilation: each repeated block of UNet and WriteNet becomes a compiled program, shared by equal blocks.

A program belongs to a block's weights by shape, to the shapes of its inputs and to the gradient mode. Each has a code
object of its own, so that torch never compares a call with the guards of other programs and never reaches its limit of
8 recompilations. Within a program torch guards the active adapter: switching adapters compiles once more for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anytext2.model.layers import ResBlock, SpatialTransformer
from distill.compilation.comparison import Differs, require_same
from distill.compilation.intercept import Forward, Switch, call_key, intercept, split

BLOCKS = (ResBlock, SpatialTransformer)
"""What is compiled: classes without a block of BLOCKS inside, which the official network has many times."""

PROGRAM_LIMIT = 256
"""The official network needs up to 87 for each picture size; what comes after the limit runs as written."""

Say = Callable[[str], None]


class BlockPrograms(Switch):
    """The compiled programs of a run."""

    def __init__(self, say: Say, backend: str | Callable[..., Any] = "inductor", limit: int = PROGRAM_LIMIT) -> None:
        super().__init__()
        self._say, self._backend, self._limit = say, backend, limit
        self._programs: dict[Hashable, Forward] = {}
        self._shapes: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()
        self._is_closed = False

    def compile(self, networks: Iterable[nn.Module]) -> int:
        """Has the blocks of these networks compiled at their first call inside `active`; returns their number."""
        blocks = {m for network in networks for m in network.modules() if isinstance(m, BLOCKS)}
        for block in blocks - set(self._shapes):
            self._shapes[block] = tuple((name, p.shape, p.dtype) for name, p in block.named_parameters())
            intercept(block, self._run)
        return len(blocks)

    @property
    def count(self) -> int:
        """Number of compiled programs."""
        return len(self._programs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """As `Switch.active`. What is compiled inside is compiled with its backward pass."""
        with _whole_compilation(), super().active():
            yield

    def _run(self, forward: Forward, block: nn.Module, *args: Any) -> Any:
        if not self.is_on:
            return forward(block, *args)
        key = (forward, self._shapes[block], call_key(*split(args, {})))
        program = self._programs.get(key) or self._new_program(key, forward, block, args)
        try:
            return program(block, *args)
        except torch._dynamo.exc.TorchDynamoException as error:  # of another adapter than at first
            return self._give_up(key, forward, block, error)(block, *args)

    def _new_program(self, key: Hashable, forward: Forward, block: nn.Module, args: tuple[Any, ...]) -> Forward:
        """A program that was compared with the forward, or the forward where nothing more is to be compiled.

        Programs of before stay: a block that is recomputed must run in the backward pass as it ran in the forward pass.
        """
        if not self._is_closed and len(self._programs) >= self._limit:
            self._close(f"{self._limit} programs are compiled, more shapes of blocks")
        if self._is_closed:
            return forward
        program = torch.compile(_own_code(forward), backend=self._backend, fullgraph=True, dynamic=False)
        try:
            _require_same(program, forward, block, args)
        except (torch._dynamo.exc.TorchDynamoException, Differs) as error:
            return self._give_up(key, forward, block, error)
        self._programs[key] = program
        return program

    def _give_up(self, key: Hashable, forward: Forward, block: nn.Module, error: Exception) -> Forward:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self._close(f"{type(block).__name__} does not compile ({reason}); what is not compiled yet")
        self._programs[key] = forward
        return forward

    def _close(self, reason: str) -> None:
        if not self._is_closed:
            self._say(f"train.compile=blocks: {reason} runs eagerly")
        self._is_closed = True


def _require_same(program: Forward, forward: Forward, block: nn.Module, args: tuple[Any, ...]) -> None:
    """Raises Differs where the program does not give the values and gradients of the block as written."""
    trained = [p for p in block.parameters() if p.requires_grad]

    def run(call: Forward) -> tuple[list[Tensor], list[Tensor | None]]:
        given = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
        sources = [t for t in (*given, *trained) if isinstance(t, Tensor) and t.requires_grad]
        # Where a block is recomputed, torch counts what is saved; these hooks keep it from counting here.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            y = call(block, *given)
            if not (torch.is_grad_enabled() and sources):
                return [y], []
            if not y.requires_grad:
                return [y], [None] * len(sources)
            like = torch.cos(torch.arange(y.numel(), device=y.device)).to(y.dtype).view(y.shape)
            return [y], list(torch.autograd.grad(y, sources, like, allow_unused=True))

    (values, gradients), (expected, wanted) = run(program), run(forward)
    require_same((values, expected), (gradients, wanted))


def _own_code(function: Forward) -> Forward:
    """The same function with a code object of its own: torch keeps compiled programs by code object."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    copied = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _whole_compilation() -> AbstractContextManager[None]:
    """Compiles the backward pass with the forward pass, so that an error of either is met in one place."""
    import torch._functorch.config as config

    name = "force_non_lazy_backward_lowering"  # not in every release of torch
    return config.patch({name: True}) if hasattr(config, name) else nullcontext()  # type: ignore[no-any-return]
