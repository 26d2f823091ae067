"""The sections of a benchmark that measure micro-steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext2.model.memory_format import use_gpu_format
from distill.config.schema import Recipe
from launch.bench.gpu.kernels import Kernel
from launch.bench.gpu.steps import Plan, Steps, add_row, measure_step, memory_in_use
from launch.bench.measure import count_flops, median_seconds
from launch.bench.saved_memory import plain_convolutions
from launch.bench.savings import SAVINGS, pictures_encoded
from launch.bench.workload import MicroStep, Workload

Rows = dict[str, Any]
Peers = Mapping[str, Callable[[Workload], MicroStep]]

CONSISTENCY = ("objective.name=consistency", "objective.teacher_steps=1")
"""The objective of the public recipe: one solver step of the teacher, and the student's own target."""
BEFORE = (
    *("context projected once", "batched guidance", "teacher without LoRA layers", "fused LoRA layers"),
    *("both captions in one call", "negative prompt once a run"),
)
"""The savings that the code of before lacked, in an order in which they can be switched off together."""
BOTH = "blocks+graphs"
TEN = 10


class StepSections:
    """Measures into the rows that it is given. rates: the card's, of card.py, filled by another section."""

    def __init__(self, plan: Plan, folder: Path, device: torch.device, peers: Peers, rates: Rows) -> None:
        self.plan, self._folder, self._device, self._peers, self._rates = plan, folder, device, peers, rates
        self._steps: Steps | None = None
        self._kernels: dict[str, list[Kernel]] = {}

    def reset(self) -> None:
        """After an error: the next section has a model of its own."""
        self._steps = None

    def steps(self, dtype: torch.dtype = torch.float16) -> Steps:
        """The model in that dtype (float32 on a CPU, which is slow in others); one is kept at a time."""
        dtype = dtype if self._device.type == "cuda" else torch.float32
        if self._steps is None or self._steps.dtype != dtype:
            self._steps = None
            self._steps = Steps(self.plan, dtype, self._folder, self._device)
        return self._steps

    def eager(self, rows: Rows) -> None:
        """Micro-batches of the production step as written."""
        self._compiled("none", rows, self.plan.batches)

    def graphs(self, rows: Rows) -> None:
        """The same as CUDA graphs."""
        self._compiled("graphs", rows, self.plan.batches)

    def blocks(self, rows: Rows) -> None:
        """The micro-batch of the comparisons with compiled blocks, alone and inside CUDA graphs."""
        for mode in ("blocks", BOTH):
            self._compiled(mode, rows, (self.plan.batch,))

    def more_blocks(self, rows: Rows) -> None:
        """The other micro-batches with compiled blocks inside CUDA graphs, the largest first, as far as time goes."""
        others = sorted((batch for batch in self.plan.batches if batch != self.plan.batch), reverse=True)
        self._compiled(BOTH, rows, tuple(others))

    def bfloat16(self, rows: Rows) -> None:
        """The micro-batch of the comparisons in the other half precision."""
        for mode in ("none", "graphs") if self._device.type == "cuda" else ("none",):
            self._compiled(mode, rows, (self.plan.batch,), torch.bfloat16)

    def recomputation(self, rows: Rows) -> None:
        """What is recomputed, at the largest micro-batches."""
        steps = self.steps()
        for setting in ("selective", "all"):
            for batch in sorted(self.plan.batches)[-2:]:
                steps.recompute(setting)
                try:
                    step = steps.workload(batch).micro_step()
                    add_row(rows, f"{setting}, {batch}", partial(self._measure, steps, step))
                finally:
                    steps.recompute("none")

    def before(self, rows: Rows) -> None:
        """The production step as near as possible to the code of before: savings off, plain memory format."""
        steps = self.steps()
        step = steps.workload(self.plan.batch).micro_step()
        add_row(rows, "now", partial(self._measure, steps, step))
        with _as_before(steps) as context:
            add_row(rows, "before", partial(self._measure, steps, replace(step, context=context)))

    def peers(self, rows: Rows) -> None:
        """`consistency` and the public recipe in turns; the recipe in its own memory format; ours as CUDA graphs."""
        for batch in self.plan.peer_batches:
            self._take_turns(rows, batch)
            if self._device.type == "cuda":
                self._fast_consistency("graphs", rows, batch, rows)

    def compiled_peers(self, rows: Rows, plain: Rows) -> None:
        """`consistency` with compiled blocks inside CUDA graphs. plain: the rows of `peers`."""
        self._fast_consistency(BOTH, rows, self.plan.batch, plain)

    def _consistency(self, batch: int) -> tuple[Recipe, dict[str, MicroStep]]:
        recipe = self.plan.recipe(*CONSISTENCY)
        step = self.steps().workload(batch).micro_step(recipe)
        return recipe, {"cached": step, "online": replace(step, context=pictures_encoded)}

    def _take_turns(self, rows: Rows, batch: int) -> None:
        steps, workload = self.steps(), self.steps().workload(batch)
        peers = {name: make(workload) for name, make in self._peers.items()}
        turns = self._consistency(batch)[1] | peers
        for name, step in turns.items():
            add_row(rows, f"{name}, {batch}", partial(self._measure_counted, steps, step))
        turns = {name: step for name, step in turns.items() if "error" not in rows[f"{name}, {batch}"]}
        for name, seconds in median_seconds(turns, self._device, self.plan.repeats, warmups=0).items():
            row = rows[f"{name}, {batch}"]
            row |= {"seconds": seconds, "samples_per_second": batch / seconds}
            row["utilisation"] = self._utilisation(row)
            turns[name].clear()
        for name, step in peers.items():
            with _contiguous(step.network, workload):
                add_row(rows, f"{name}, contiguous, {batch}", partial(self._measure, steps, step, 0))
            step.clear()

    def _fast_consistency(self, mode: str, rows: Rows, batch: int, plain: Rows) -> None:
        steps = self.steps()
        recipe, ours = self._consistency(batch)
        before = memory_in_use(steps.device)
        with steps.fast_path(mode, recipe) as path:
            for name, step in ours.items():
                flops = int((plain.get(f"{name}, {batch}", {}).get("tflop_a_sample") or 0) * 1e12)
                step = replace(step, context=_both(step.context, path.active))
                measure = partial(self._measure, steps, step, flops, True, before)
                add_row(rows, f"{name}, {mode}, {batch}", measure)

    def kernels(self, rows: Rows) -> None:
        """The largest kernels of the production step, of the rows that were measured: name, calls, seconds."""
        for name, kernels in self._kernels.items():
            rows[name] = [{"name": k.name[:120], "calls": len(k.spans), "seconds": k.seconds} for k in kernels[:TEN]]

    def _compiled(self, mode: str, rows: Rows, batches: tuple[int, ...], dtype: torch.dtype = torch.float16) -> None:
        steps = self.steps(dtype)
        for batch in batches:
            with steps.fast_path(mode) as path:
                step = replace(steps.workload(batch).micro_step(), context=path.active)
                measure = partial(self._measure, steps, step, captures="graphs" in mode)
                kernels = add_row(rows, f"{mode}, {batch}", measure)
            if batch == self.plan.batch and dtype == torch.float16:
                self._kernels[mode] = kernels

    def _measure(
        self,
        steps: Steps,
        step: MicroStep,
        flops: int | None = None,
        captures: bool = False,
        before: int | None = None,
    ) -> tuple[Rows, list[Kernel]]:
        """`measure_step`; flops: by default the production step's."""
        flops = steps.production_flops if flops is None else flops
        row, kernels = measure_step(step, self.plan.repeats, flops, self._rate(), captures, before)
        return row | {"dtype": str(steps.dtype).removeprefix("torch.")}, kernels

    def _measure_counted(self, steps: Steps, step: MicroStep) -> tuple[Rows, list[Kernel]]:
        """The same of a step whose FLOPs are counted, after a first step, which fills what is kept for a whole run."""
        step()
        return self._measure(steps, step, count_flops(step) // step.samples)

    def _rate(self) -> float:
        dtype = str(self._steps.dtype if self._steps else torch.float16).removeprefix("torch.")
        return float(self._rates.get(dtype, 0.0))

    def _utilisation(self, row: Rows) -> float | None:
        flops, rate = row["tflop_a_sample"], self._rate()
        return flops * 1e12 * row["samples_per_second"] / rate if flops and rate else None


@contextmanager
def _as_before(steps: Steps) -> Iterator[Callable[[], Any]]:
    """Inside, weights, convolutions and cuDNN are as before. Gives the context of a step without the savings."""

    @contextmanager
    def without_savings() -> Iterator[None]:
        with ExitStack() as stack:
            for name in BEFORE:
                stack.enter_context(SAVINGS[name]())
            yield

    searches = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with plain_convolutions(steps.roles.model), _contiguous(steps.roles.wrapped, steps.workload(steps.plan.batch)):
            yield without_savings
    finally:
        torch.backends.cudnn.benchmark = searches


@contextmanager
def _contiguous(network: nn.Module, workload: Workload) -> Iterator[None]:
    """Inside, the frozen weights of the network are in PyTorch's own memory format, not in that of `use_gpu_format`."""
    for p in network.parameters():
        p.data = p.data.contiguous()
    try:
        yield
    finally:
        use_gpu_format(workload.roles.model)


def _both(first: Callable[[], Any], second: Callable[[], Any]) -> Callable[[], Any]:
    @contextmanager
    def context() -> Iterator[None]:
        with first(), second():
            yield

    return context
