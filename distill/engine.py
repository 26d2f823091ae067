"""DeepSpeed: the only module that imports it. ZeRO-2 over whatever is trained, fp16 loss scaling, accumulation.

What DeepSpeed reads from its JSON is completed here with what the recipe owns: batch sizes, gradient clipping.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import torch
import torch.distributed as dist
from torch import nn

from distill.config import TrainSection
from distill.stream import BatchPlan

CPU_CONFIG = "zero2_cpu.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
SECTIONS = ("zero_optimization", "fp16", "bf16")


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


def read_ds_config(path: Path) -> dict[str, Any]:
    """Reads a DeepSpeed JSON. Raises ValueError in one line."""
    if not path.is_file():
        raise ValueError(
            f"--deepspeed {path}: no such file (shipped: ds_configs/zero2.json, zero2_bf16.json, zero2_cpu.json)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {path}: not valid JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(name, {}), dict) for name in SECTIONS):
        raise ValueError(f"--deepspeed {path}: an object is needed, and objects in it as {', '.join(SECTIONS)}")
    stage = config.get("zero_optimization", {}).get("stage")
    if stage != 2:
        raise ValueError(f"--deepspeed {path}: zero_optimization.stage={stage}; this trainer shards with stage 2")
    return cast(dict[str, Any], config)


def precision_of(ds_config: dict[str, Any]) -> str:
    """`fp16`, `bf16` or `fp32`."""
    for name in ("fp16", "bf16"):
        if ds_config.get(name, {}).get("enabled"):
            return name
    return "fp32"


def choose_config(path: Path, world: World, fp16_on_cpu: bool) -> tuple[dict[str, Any], str]:
    """The DeepSpeed configuration that runs here, and a line about it.

    DeepSpeed refuses fp16 without a GPU; there zero2_cpu.json beside the given file takes its place, unless
    `fp16_on_cpu` asks for real fp16 with real loss scaling on the CPU.
    """
    config = read_ds_config(path)
    kind = precision_of(config)
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    if world.device.type == "cuda":
        return config, f"DeepSpeed ZeRO-2: {kind}, {ranks} on {torch.cuda.get_device_name(world.device)}"
    if kind == "fp16" and not fp16_on_cpu:
        config = read_ds_config(path.parent / CPU_CONFIG)
        return config, (
            f"No GPU here: {path.name} (fp16) falls back to {CPU_CONFIG} ({precision_of(config)}), {ranks} on the CPU"
        )
    return config, f"DeepSpeed ZeRO-2: {kind}, {ranks} on the CPU"


def init_world(local_rank: int, threads: int) -> World:
    """Joins the process group (gloo on the CPU, NCCL on GPUs) from the launcher's environment variables."""
    import deepspeed

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        os.environ.setdefault(name, value)
    if os.environ["MASTER_PORT"] == "0":
        os.environ["MASTER_PORT"] = str(_free_port())
    local_rank = int(os.environ.get("LOCAL_RANK", max(local_rank, 0)))
    os.environ["LOCAL_RANK"] = str(local_rank)
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        device, backend = torch.device("cuda", local_rank), "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(threads or max(1, (psutil.cpu_count(logical=True) or 1) // local_world))
        # The shared-memory op would be compiled at the first start (half a minute) and only speeds up large all-reduces
        # between CPU ranks, which a LoRA does not have.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return World(dist.get_rank(), local_rank, dist.get_world_size(), device)


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
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
        optimizer = torch.optim.AdamW(
            [p for _, p in self.params],
            lr=train.learning_rate,
            betas=(train.betas[0], train.betas[1]),
            weight_decay=train.weight_decay,
            fused=world.device.type == "cuda" or None,
        )
        self.module = module
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, model_parameters=[p for _, p in self.params], config=config
        )
        self._allocate_moments()
        self._ema = [m.detach().clone() for m in self._masters] if train.ema_decay else []

    @property
    def _masters(self) -> list[torch.Tensor]:
        """This rank's flat float32 master weights, one tensor a parameter group."""
        return cast(list[torch.Tensor], self._optimizer.single_partition_of_fp32_groups)

    def _allocate_moments(self) -> None:
        """Adam's moments from the start, not from the first step on: resume writes into them, and they are counted."""
        inner = self._optimizer.optimizer
        for master in self._masters:
            # Fused Adam wants its step counter beside the weights, the plain one on the CPU.
            step = torch.zeros((), device=master.device if inner.defaults["fused"] else "cpu")
            inner.state[master] = {"step": step} | {moment: torch.zeros_like(master) for moment in MOMENTS}
        # DeepSpeed otherwise links the moments to the parameters after its first step.
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def forward(self, item: Any) -> Any:
        return self._engine(item)

    def backward(self, loss: torch.Tensor) -> None:
        """Scales, divides by the accumulation, and hands the gradient to its owner's shard."""
        self._engine.backward(loss)

    def step(self, learning_rate: float, ema_decay: float = 0.0) -> StepResult | None:
        """After every micro-batch. None inside an accumulation; at its end, the update (or fp16's skipping of it).

        ema_decay: how much of the average of the weights survives this update, where an average is kept.
        """
        boundary = self._engine.is_gradient_accumulation_boundary()
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
        """Bytes of this rank's shard: float32 master weights and Adam's moments."""
        moments = sum(
            value.numel() * value.element_size()
            for state in self._optimizer.optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value) and value.dim() > 0
        )
        return moments + sum(m.numel() * m.element_size() for m in self._masters)

    def full_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Whole tensors by parameter name: `master`, `exp_avg`, `exp_avg_sq`, `step`, `ema` where it is on. Collective.

        The form does not depend on the world size; tensors are float32 on the CPU, on every rank.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        step = torch.as_tensor(float(self._optimizer.optimizer.state[self._masters[0]]["step"]))
        state: dict[str, dict[str, torch.Tensor]] = {}
        for name, p in self.params:
            slots = {"master": safe_get_full_fp32_param(p)}
            slots |= {moment: safe_get_full_optimizer_state(p, moment) for moment in MOMENTS}
            state[name] = {slot: value.detach().float().cpu().clone() for slot, value in slots.items()} | {
                "step": step.clone()
            }
        if self._ema:
            with self._masters_are_ema():
                for name, p in self.params:
                    state[name]["ema"] = safe_get_full_fp32_param(p).detach().cpu().clone()
        return state

    @contextmanager
    def _masters_are_ema(self) -> Iterator[None]:
        kept = [m.detach().clone() for m in self._masters]
        torch._foreach_copy_([m.data for m in self._masters], self._ema)
        try:
            yield
        finally:
            torch._foreach_copy_([m.data for m in self._masters], kept)

    def load_full_state(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        """Puts what `full_state` returned back into this rank's shards, whatever the world size was. Collective."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        device = self.world.device
        if self._ema:
            for name, p in self.params:
                safe_set_full_fp32_param(p, state[name].get("ema", state[name]["master"]).to(device))
            torch._foreach_copy_(self._ema, [m.detach() for m in self._masters])
        for name, p in self.params:
            master = state[name]["master"].to(device)
            safe_set_full_fp32_param(p, master)
            p.data.copy_(master)
            for moment in MOMENTS:
                safe_set_full_optimizer_state(p, state[name][moment].to(device), moment)
        for inner in self._optimizer.optimizer.state.values():
            inner["step"].fill_(float(state[self.params[0][0]]["step"]))

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of a small float tensor. Collective."""
        if self.world.size > 1:
            dist.all_reduce(values)
            values = values / self.world.size
        return values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of a small tensor. Collective."""
        if self.world.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's (picklable) value, in order of rank, on every rank. Collective."""
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world.size > 1:
            dist.barrier()


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
