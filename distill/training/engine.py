"""DeepSpeed: the only module that imports it. ZeRO-2 over whatever is trained, fp16 loss scaling, accumulation.

What DeepSpeed reads from its JSON is completed here with what the recipe owns: batch sizes, gradient clipping.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn

from distill.adapters.lora import adapter_of
from distill.config.ds_config import precision_of
from distill.config.schema import TrainConfig
from distill.data.loader import BatchSizes
from distill.optim.gradients import GradientSum, ReducedByDeepSpeed
from distill.optim.optimizers import OPTIMIZERS, PAUSED, skip_paused
from distill.runtime.arrival import report_missing_ranks
from distill.runtime.gloo import gather_parts
from distill.runtime.rendezvous import LOOPBACK, device_index, find_rendezvous, in_slurm_step
from distill.runtime.world import World, all_gather_object
from distill.training.zero_shards import Shards


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. grad_norm is before clipping, unscaled; nan where DeepSpeed skipped the update."""

    skipped: bool
    grad_norm: float
    loss_scale: float


def init_world(local_rank: int, threads: int) -> World:
    """Joins the process group (gloo on the CPU, NCCL on GPUs), found from the launcher's or SLURM's variables.

    Raises ValueError for variables that do not fit together, for a rank without a GPU where there are GPUs, and for a
    port that is taken.
    """
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    import deepspeed

    here = find_rendezvous(os.environ, local_rank)
    if not here.master_port:
        here = replace(here, master_port=_free_port())
    if torch.cuda.is_available():
        index = device_index(here.local_rank, torch.cuda.device_count(), in_slurm_step(os.environ))
        torch.cuda.set_device(index)
        device, backend = torch.device("cuda", index), "nccl"
    else:
        index, device, backend = here.local_rank, torch.device("cpu"), "gloo"
        torch.set_num_threads(threads or max(1, (psutil.cpu_count(logical=True) or 1) // here.local_size))
        # The shared-memory op would be compiled at the first start (half a minute) and only speeds up large all-reduces
        # between CPU ranks, which a LoRA does not have.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    os.environ.update(here.variables() | {"LOCAL_RANK": str(index)})  # DeepSpeed takes LOCAL_RANK for the GPU's number
    try:
        with report_missing_ranks(here):
            deepspeed.init_distributed(dist_backend=backend, verbose=False)
        if backend == "gloo":
            deepspeed.comm.comm.cdb.all_gather_function = gather_parts
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ValueError(
            f"port {here.master_port} is taken, perhaps by another run on this host; choose one, as in: "
            f"deepspeed --master_port {here.master_port + 1} launch/train.py ..."
        ) from error
    return World(dist.get_rank(), here.local_rank, dist.get_world_size(), device)


def _is_news(record: logging.LogRecord) -> bool:
    """Leaves out DeepSpeed's warning of a machine without a GPU; the command says itself what it runs on."""
    return not record.getMessage().startswith("Setting accelerator to CPU.")


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        return int(s.getsockname()[1])


class Engine:
    """Runs one module under ZeRO-2. `params` are trained; their names are the checkpoint's vocabulary."""

    def __init__(
        self,
        module: nn.Module,
        params: Sequence[tuple[str, nn.Parameter]],
        train: TrainConfig,
        plan: BatchSizes,
        ds_config: dict[str, Any],
        world: World,
    ) -> None:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        self.plan, self.world = plan, world
        self.precision = precision_of(ds_config)
        self.params = [(name, p) for name, p in params]
        assert self.params and all(p.requires_grad for _, p in self.params)
        if self.precision == "fp16" and world.device.type == "cpu":
            get_accelerator().is_fp16_supported = lambda: True
        config = dict(
            ds_config,
            train_batch_size=plan.effective,
            train_micro_batch_size_per_gpu=plan.micro,
            gradient_accumulation_steps=plan.accumulation,
            gradient_clipping=train.max_grad_norm,
            zero_allow_untested_optimizer=True,
            steps_per_print=2**31 - 1,
        )
        self.ds_config = config
        self._kind = OPTIMIZERS[train.optimizer]
        groups = _groups(self.params)
        optimizer = self._kind.make(
            [{"params": [p for _, p in g]} for g in groups.values()], train, world.device, self.total
        )
        if len(groups) > 1:
            skip_paused(optimizer)
        self.module = module
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=[p for _, p in self.params], config=config
        )
        if self.precision == "fp16" and hasattr(self._optimizer.loss_scaler, "raise_error_at_min_scale"):
            # The trainer ends such a run, after some more tries and with its own words.
            self._optimizer.loss_scaler.raise_error_at_min_scale = False
        self._gradients: GradientSum | ReducedByDeepSpeed = ReducedByDeepSpeed()
        if sum(flat.numel() for flat in self._optimizer.bit16_groups_flat) <= self._optimizer.reduce_bucket_size:
            self._gradients = GradientSum(self._engine, self._optimizer, config.get("communication_data_type", "fp32"))
        self._group_names = list(groups)
        self._shards = Shards(self._optimizer, self._kind, list(groups.values()), self.total)
        self._shards.start_optimizer()
        self._ema = [m.detach().clone() for m in self._shards.masters] if train.ema_decay else []
        self._shown: list[nn.Parameter] = []

    @property
    def optimizer_report(self) -> dict[str, float]:
        """What the optimizer has to tell about itself: Prodigy its `d`."""
        inner, master = self._optimizer.optimizer, self._shards.masters[0]
        return {name: self._kind.scalar(inner, master, name) for name in self._kind.logged}

    def forward(self, item: Any) -> Any:
        return self._engine(item)

    def backward(self, loss: torch.Tensor) -> None:
        """Scales, divides by the accumulation, and adds the gradient; the last one's sum goes to its owners' shards."""
        self._gradients.attach()
        self._engine.backward(loss)
        self._gradients.add()
        if self.is_at_boundary:
            self._gradients.share_out()
        else:
            self._engine.step()  # only counts the micro-batch

    def step(self, learning_rate: float, ema_decay: float = 0.0, adapter: str = "") -> StepResult:
        """The update after the last micro-batch of a global batch, or fp16's skipping of it.

        ema_decay: how much of the average of the weights survives this update, where an average is kept. adapter: where
        several are trained, the one whose turn it is; the others, their moments and averages stay as they are.
        """
        assert self.is_at_boundary, "a global batch has plan.accumulation micro-batches"
        for name, group in zip(self._group_names, self._optimizer.param_groups, strict=True):
            group["lr"], group[PAUSED] = learning_rate, len(self._group_names) > 1 and name != adapter
        skipped_before = self._engine.skipped_steps
        scale = self.loss_scale
        self._engine.step()
        skipped = self._engine.skipped_steps > skipped_before
        if skipped:
            return StepResult(True, math.nan, scale)
        if self._ema:
            for group, average, master in zip(
                self._optimizer.param_groups, self._ema, self._shards.masters, strict=True
            ):
                if not group[PAUSED]:
                    # detached: the average would otherwise carry the graph of every step behind it
                    average.lerp_(master.detach(), 1.0 - ema_decay)
            self._show_average()
        norm = self._engine.get_global_grad_norm()
        return StepResult(False, float(norm) if norm is not None else math.nan, scale)

    @property
    def is_at_boundary(self) -> bool:
        """Whether the present micro-batch is the last of its global batch."""
        return bool(self._engine.is_gradient_accumulation_boundary())

    @property
    def is_scale_at_floor(self) -> bool:
        """Whether a dynamic loss scale cannot be lowered any more (fp16.min_loss_scale)."""
        floor = getattr(self._optimizer.loss_scaler, "min_scale", None) if self.precision == "fp16" else None
        return floor is not None and self.loss_scale <= floor

    @property
    def loss_scale(self) -> float:
        return float(self._optimizer.loss_scale) if self.precision == "fp16" else 1.0

    def scaler_state(self) -> dict[str, float]:
        """The dynamic loss scaler's counters; empty in other precisions."""
        scaler = getattr(self._optimizer, "loss_scaler", None)
        names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {n: getattr(scaler, n) for n in names if hasattr(scaler, n)} if self.precision == "fp16" else {}

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Continues with the counters of `scaler_state`; a precision without loss scaling has no use for them."""
        if self.precision != "fp16":
            return
        for name, value in state.items():
            setattr(self._optimizer.loss_scaler, name, value)

    def optimizer_bytes(self) -> int:
        """Bytes of this rank's shard: float32 master weights and the optimizer's moments."""
        moments = sum(
            value.numel() * value.element_size()
            for state in self._optimizer.optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value) and value.dim() > 0
        )
        return moments + sum(m.numel() * m.element_size() for m in self._shards.masters)

    def full_state(self, keep: bool = True) -> dict[str, dict[str, torch.Tensor]]:
        """See `Shards.full_state`; `ema` is there where an average is kept. Collective."""
        return self._shards.full_state(self._ema, keep)

    @property
    def optimizer_slots(self) -> set[str]:
        """The names under which `full_state` holds the optimizer's state."""
        return {*self._kind.moments, *self._kind.scalars}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their average, as a checkpoint holds them, where one is kept. Collective."""
        if not self._ema:
            yield
            return
        kept = [p.detach().clone() for _, p in self.params]
        self._shards.copy_whole(self._ema, [p for _, p in self.params])
        try:
            yield
        finally:
            for (_, p), values in zip(self.params, kept, strict=True):
                p.data.copy_(values)

    def copy_ema_to(self, params: Sequence[nn.Parameter]) -> None:
        """Keeps ``params``, the trained ones' copies in their order, equal to the average from now on. Collective."""
        self._shown = list(params)
        self._show_average()

    def _show_average(self) -> None:
        if self._shown:
            self._shards.copy_whole(self._ema, self._shown)

    def load_full_state(self, state: dict[str, dict[str, torch.Tensor]], moments: bool = True) -> None:
        """Puts what `full_state` returned back into this rank's shards, whatever the world size was. Collective.

        moments: False starts the optimizer afresh from the weights that are loaded, and their average.
        """
        self._shards.load_full_state(state, self._ema, moments)
        self._show_average()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of a small float tensor. Collective."""
        if self.world.size > 1:
            dist.all_reduce(values)
            values = values / self.world.size
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a tensor, which may be changed. Collective."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise maximum over ranks of a small tensor. Collective."""
        if self.world.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's (picklable) value, in order of rank, on every rank. Collective."""
        return all_gather_object(value)

    def barrier(self) -> None:
        if self.world.size > 1:
            dist.barrier()


def _groups(params: Sequence[tuple[str, nn.Parameter]]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The parameters by the adapter that their name begins with (``adapter:name``), the student's first."""
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, p in params:
        groups.setdefault(adapter_of(name), []).append((name, p))
    return groups
