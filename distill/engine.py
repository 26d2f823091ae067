"""DeepSpeed: the only module that imports it. ZeRO-2 over whatever is trained, fp16 loss scaling, accumulation.

What DeepSpeed reads from its JSON is completed here with what the recipe owns: batch sizes, gradient clipping.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from torch import nn

from distill.config import TrainSection
from distill.ds_config import precision_of
from distill.optimizers import OPTIMIZERS
from distill.rendezvous import LOOPBACK, device_index, find_rendezvous, in_slurm_step
from distill.stream import BatchPlan

BUCKET = 32 * 2**20
"""Values that are gathered at once for a checkpoint: 128 MiB beside everything else on the device."""
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


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
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ValueError(
            f"port {here.master_port} is taken, perhaps by another run on this host; choose one, as in: "
            f"deepspeed --master_port {here.master_port + 1} launch/train.py ..."
        ) from error
    return World(dist.get_rank(), here.local_rank, dist.get_world_size(), device)


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
        train: TrainSection,
        plan: BatchPlan,
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
        optimizer = self._kind.make([p for _, p in self.params], train, world.device, self.total)
        self.module = module
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=[p for _, p in self.params], config=config
        )
        if self.precision == "fp16" and hasattr(self._optimizer.loss_scaler, "raise_error_at_min_scale"):
            # The trainer ends such a run, after some more tries and with its own words.
            self._optimizer.loss_scaler.raise_error_at_min_scale = False
        self._start_optimizer()
        self._ema = [m.detach().clone() for m in self._masters] if train.ema_decay else []

    @property
    def _masters(self) -> list[torch.Tensor]:
        """This rank's flat float32 master weights, one tensor a parameter group."""
        return cast(list[torch.Tensor], self._optimizer.single_partition_of_fp32_groups)

    def _start_optimizer(self) -> None:
        for master in self._masters:
            self._kind.start(self._optimizer.optimizer, master)

    @property
    def optimizer_report(self) -> dict[str, float]:
        """What the optimizer has to tell about itself: Prodigy its `d`."""
        inner, master = self._optimizer.optimizer, self._masters[0]
        return {name: self._kind.scalar(inner, master, name) for name in self._kind.told}

    def forward(self, item: Any) -> Any:
        return self._engine(item)

    def backward(self, loss: torch.Tensor) -> None:
        """Scales, divides by the accumulation, and hands the gradient to its owner's shard."""
        self._engine.backward(loss)

    def step(self, learning_rate: float, ema_decay: float = 0.0) -> StepResult | None:
        """After every micro-batch. None inside an accumulation; at its end, the update (or fp16's skipping of it).

        ema_decay: how much of the average of the weights survives this update, where an average is kept.
        """
        boundary = self.is_at_boundary
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        skipped_before = self._engine.skipped_steps
        scale = self.loss_scale
        self._engine.step()
        if not boundary:
            return None
        skipped = self._engine.skipped_steps > skipped_before
        if skipped:
            return StepResult(True, math.nan, scale)
        if self._ema:
            # detached: the average would otherwise carry the graph of every step behind it
            torch._foreach_lerp_(self._ema, [m.detach() for m in self._masters], 1.0 - ema_decay)
        norm = self._engine.get_global_grad_norm()
        return StepResult(False, float(norm) if norm is not None else math.nan, scale)

    @property
    def is_at_boundary(self) -> bool:
        """Whether the micro-batch of now is the last of its update: the next `step` is one."""
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
        return moments + sum(m.numel() * m.element_size() for m in self._masters)

    def full_state(self, keep: bool = True) -> dict[str, dict[str, torch.Tensor]]:
        """Whole tensors by parameter name: `master`, the optimizer's moments and scalars (as `exp_avg`, `exp_avg_sq`,
        `step`), `ema` where it is on. Collective.

        The form does not depend on the world size; tensors are float32 on the CPU (scalars may be float64), and later
        updates do not change them. keep: False on a rank that only takes part in gathering; it gets nothing.
        """
        (master,) = self._masters
        kind, inner = self._kind, self._optimizer.optimizer
        scalars = {n: torch.tensor(kind.scalar(inner, master, n), dtype=d) for n, d in kind.scalars.items()}
        state = {name: {n: value.clone() for n, value in scalars.items()} for name, _ in self.params} if keep else {}
        for slot in ("master", *kind.moments, *(("ema",) if self._ema else ())):
            if slot == "master":
                shard = master.detach()
            else:
                shard = self._ema[0] if slot == "ema" else kind.moment(inner, master, slot)
            for bucket in _buckets(self.params):
                whole = self._whole([p for _, p in bucket], shard)
                if keep:
                    copies = whole.to("cpu").split([p.numel() for _, p in bucket])
                    for (name, p), values in zip(bucket, copies, strict=True):
                        state[name][slot] = values.reshape(p.shape)
        return state

    @property
    def optimizer_slots(self) -> set[str]:
        """The names under which `full_state` holds the optimizer's state."""
        return {*self._kind.moments, *self._kind.scalars}

    def _whole(self, params: Sequence[nn.Parameter], shard: torch.Tensor) -> torch.Tensor:
        """The values of `params`, flat and one after the other, of which every rank's `shard` holds a part. Collective.

        One sum for many parameters: DeepSpeed's `safe_get_full_*` need one for each parameter and kind of state.
        """
        whole = torch.zeros(sum(p.numel() for p in params), device=shard.device)
        for p, values in zip(params, whole.split([p.numel() for p in params]), strict=True):
            if p._hp_mapping is not None:  # type: ignore[attr-defined]  # some of it is in this rank's shard
                to, of = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address  # type: ignore[attr-defined]
                values.narrow(0, to.start, to.numel).copy_(shard.narrow(0, of.start, of.numel))
        return self.total(whole)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their average, as a checkpoint holds them, where one is kept. Collective."""
        if not self._ema:
            yield
            return
        kept = [p.detach().clone() for _, p in self.params]
        for bucket in _buckets(self.params):
            whole = self._whole([p for _, p in bucket], self._ema[0])
            for (_, p), values in zip(bucket, whole.split([p.numel() for _, p in bucket]), strict=True):
                p.data.copy_(values.reshape(p.shape))
        try:
            yield
        finally:
            for (_, p), values in zip(self.params, kept, strict=True):
                p.data.copy_(values)

    def load_full_state(self, state: dict[str, dict[str, torch.Tensor]], moments: bool = True) -> None:
        """Puts what `full_state` returned back into this rank's shards, whatever the world size was. Collective.

        moments: False starts the optimizer afresh from the weights that are loaded, and their average.
        """
        from deepspeed.utils import safe_set_full_fp32_param

        device = self.world.device
        if self._ema:
            for name, p in self.params:
                safe_set_full_fp32_param(p, state[name].get("ema", state[name]["master"]).to(device))
            torch._foreach_copy_(self._ema, [m.detach() for m in self._masters])
        for name, p in self.params:
            master = state[name]["master"].to(device)
            safe_set_full_fp32_param(p, master)
            p.data.copy_(master)
        if not moments:
            self._start_optimizer()
            return
        (master_shard,) = self._masters
        first = state[self.params[0][0]]
        for slot in self._kind.moments:
            shard = self._shard({name: slots[slot] for name, slots in state.items()})
            self._kind.put_moment(self._optimizer.optimizer, master_shard, slot, shard)
        for name in self._kind.scalars:
            self._kind.put_scalar(self._optimizer.optimizer, master_shard, name, float(first[name]))

    def _shard(self, whole: dict[str, torch.Tensor]) -> torch.Tensor:
        """This rank's part of whole tensors by parameter name: the inverse of `_whole`."""
        shard = torch.zeros_like(self._masters[0])
        for name, p in self.params:
            if p._hp_mapping is not None:  # type: ignore[attr-defined]
                to, of = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address  # type: ignore[attr-defined]
                shard.narrow(0, of.start, of.numel).copy_(whole[name].reshape(-1).narrow(0, to.start, to.numel))
        return shard

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
        return gather(value)

    def barrier(self) -> None:
        if self.world.size > 1:
            dist.barrier()


def _buckets(params: Sequence[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Runs of parameters of at most BUCKET values together, or of one parameter."""
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, p in params:
        if bucket and size + p.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, p))
        size += p.numel()
    yield bucket


def on_main(world: World, call: Callable[[], T]) -> T:
    """What `call()` returns on rank 0, on every rank; a ValueError that it raises there, too. Collective.

    The value must be picklable.
    """
    answer: list[Any] = [None, None]
    if world.is_main:
        try:
            answer[0] = call()
        except ValueError as error:
            answer[1] = error
    if world.size > 1:
        dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return cast(T, answer[0])


def gather(value: Any) -> list[Any]:
    """Every rank's (picklable) value, in order of rank, on every rank. Collective; needs `init_world` only."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has gone, or does not answer."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "closed by peer"))


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
