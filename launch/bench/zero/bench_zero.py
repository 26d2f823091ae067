"""Measures ZeRO-2 against DDP and against no sharding: `python launch/bench/zero/bench_zero.py [--ranks 1 2 3]`.

The trained weights are the official LoRA's: 504 tensors at rank 64. The frozen network is left out (--seconds 0), so
that optimizer and communication dominate, or replaced by a pause as long as its work would be. The variants take turns
update by update in the same processes: gloo on a CPU, NCCL where there are enough GPUs. Prints, with their ratios to
DDP, medians of the time and of the CPU time of all ranks, which other load on the machine affects less, and what the
collectives were given. Writes runs/bench/zero.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from distill.config.ds_config import precision_of, read_ds_config
from distill.config.schema import TrainConfig
from distill.data.loader import BatchSizes
from distill.runtime.world import World, all_gather_object, shutdown
from distill.training.engine import init_world
from launch.bench.zero.collectives import counted_collectives
from launch.bench.zero.variants import Ddp, Layers, Unsharded, Variant, Zero, with_changes
from launch.common.command_help import command_parser

FOLDER = Path("runs/bench")
WARM_UP = 2
DDP = "DDP"
TRAIN = TrainConfig(max_steps=1, learning_rate=1e-4, max_grad_norm=1.0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "Measure ZeRO-2 against DDP and against no sharding.",
        "python launch/bench/zero/bench_zero.py --ranks 1 2 --rounds 5",
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="processes")
    parser.add_argument("--micro-steps", type=int, default=2, metavar="K", help="micro-batches of an update on a rank")
    parser.add_argument("--seconds", type=float, default=0.0, help="the frozen network's time in a micro-step")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="updates of each variant")
    parser.add_argument(
        "--deepspeed", type=Path, default=None, metavar="JSON", help="default: zero2.json, or zero2_cpu.json"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="variants, by their names in the table")
    parser.add_argument(
        "--change", action="append", default=[], metavar="JSON",
        help="one more ZeRO-2 variant with these values in zero_optimization, as in '{\"overlap_comm\": false}'",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="for zero.json")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    args.shapes = official_shapes()
    results = [measure(ranks, args) for ranks in args.ranks]
    (args.out / "zero.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.out / 'zero.json'}")
    return 0


def official_shapes() -> list[tuple[int, ...]]:
    """The official LoRA's shapes, of A and B in turn."""
    from anytext2.model.anytext2 import build_model, load_model_config
    from distill.adapters.lora import AdapterConfig, adapter_parameters, add_student
    from distill.adapters.roles import STUDENT

    student = add_student(build_model(load_model_config("sd15"), "meta"), AdapterConfig(), 0)
    return [tuple(p.shape) for _, p in adapter_parameters(student, STUDENT)]


def measure(ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    """Starts so many ranks, and returns and prints what they measured."""
    path = args.out / f"zero-{ranks}.json"
    multiprocessing.spawn(_rank, (ranks, _free_port(), args, path), nprocs=ranks)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    where = f"{found['precision']} on {found['device']}"
    print(f"\n{ranks} ranks, {args.micro_steps} micro-steps, {args.seconds:g} s each, {where}")
    for name, row in found["variants"].items():
        sent = ", ".join(
            f"{row['calls'][n]} {n} {size / 2**20:.1f} MiB" for n, size in row["bytes"].items() if size > 2**10
        )
        wall, cpu = (f"{1000 * row[key]:8.1f} ms {row[key + '_to_ddp']:6.3f}x" for key in ("wall", "cpu"))
        print(f"{name:<34}{wall}  CPU {cpu}  {sent}", flush=True)
    return found


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _rank(rank: int, ranks: int, port: int, args: argparse.Namespace, path: Path) -> None:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"})
    if torch.cuda.device_count() < ranks:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    world = init_world(rank, 1)
    try:
        found = _measure_here(world, args)
        if world.is_main:
            path.write_text(json.dumps(found), encoding="utf-8")
    finally:
        shutdown()


def _measure_here(world: World, args: argparse.Namespace) -> dict[str, Any]:
    on_gpu = world.device.type == "cuda"
    config = read_ds_config(args.deepspeed or Path("zero2.json" if on_gpu else "zero2_cpu.json"))
    variants = _make(world, args, config)
    generator = torch.Generator().manual_seed(world.rank)
    rows = list(torch.randn(args.micro_steps, 8, 1, generator=generator).to(world.device))
    times: dict[str, dict[str, list[float]]] = {"wall": defaultdict(list), "cpu": defaultdict(list)}
    found: dict[str, dict[str, Any]] = {}
    for turn in range(WARM_UP + args.rounds):
        for name, variant in variants.items():
            torch.distributed.barrier()
            with counted_collectives() as collectives:
                norm, wall, cpu = _timed(variant, rows, on_gpu)
            cpu = sum(all_gather_object(cpu))
            if turn >= WARM_UP:
                times["wall"][name].append(wall)
                times["cpu"][name].append(cpu)
            found[name] = {"norm": norm, "calls": collectives.calls, "bytes": collectives.sizes}
    for key, of in times.items():
        medians = {name: statistics.median(values) for name, values in of.items()}
        base = medians.get(DDP, next(iter(medians.values())))
        for name, row in found.items():
            row |= {key: medians[name], f"{key}_to_ddp": medians[name] / base}
    return {
        "ranks": world.size,
        "micro_steps": args.micro_steps,
        "seconds": args.seconds,
        "precision": precision_of(config),
        "device": torch.cuda.get_device_name(world.device) if on_gpu else "the CPU",
        "variants": found,
    }


def _timed(variant: Variant, rows: Sequence[torch.Tensor], on_gpu: bool) -> tuple[float, float, float]:
    """The gradient's norm, seconds, and CPU seconds of this process, of one update."""
    if on_gpu:
        torch.cuda.synchronize()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    norm = variant.update(rows)
    if on_gpu:
        torch.cuda.synchronize()
    return norm, time.perf_counter() - begin, time.process_time() - begin_cpu


def _make(world: World, args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Variant]:
    """The variants by name. Each trains layers of its own."""
    plan = BatchSizes(args.micro_steps * world.size, 1, world.size)

    def layers() -> Layers:
        return Layers(args.shapes, args.seconds, world.device)

    def zero(changes: dict[str, Any]) -> Zero:
        return Zero(layers(), TRAIN, plan, world, with_changes(config, changes))

    makers: dict[str, Callable[[], Variant]] = {
        DDP: lambda: Ddp(layers(), TRAIN, world),
        "DeepSpeed, stage 0": lambda: Unsharded(layers(), TRAIN, plan, world),
        "ZeRO-2": lambda: zero({}),
        **{change: partial(zero, json.loads(change)) for change in args.change},
    }
    return {name: make() for name, make in makers.items() if not args.only or name in (*args.only, *args.change)}


if __name__ == "__main__":
    raise SystemExit(main())
