"""The benchmark of a GPU without a GPU: `make rehearse-gpu`.

PyTorch's CUDA build runs on a CUDA whose kernels do nothing. What it measures is true of everything but the kernels:
the host's time for a step, the number of launches, the allocator's peaks, what a capture allows, what Triton can
translate. Values, times of kernels and utilisation mean nothing. A line that begins with `null CUDA:` names what a real
one would refuse.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

FOLDER = Path("build/null_cuda")
IS_INSIDE = "NULL_CUDA_FOLDER"
MODES = ("none", "graphs", "blocks", "blocks+graphs")


def main(argv: Sequence[str]) -> int:
    """Builds, starts itself again on the null CUDA, and runs the sections. argv: as of `make bench-gpu`."""
    if IS_INSIDE not in os.environ:
        from tests.null_cuda.build import build

        headers = FOLDER / "headers" / "nvidia" / "cu13" / "include"
        environment = os.environ | build((FOLDER / "libraries").resolve(), headers)
        environment |= {IS_INSIDE: str((FOLDER / "libraries").resolve()), "NULL_CUDA_TRUE": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.null_cuda.rehearse", *argv], environment)
    _without_values()
    from launch.bench.gpu import bench_gpu
    from tests.peers.bench import public_recipe

    usual = ["--out", str(FOLDER), "--report", str(FOLDER / "report.md"), "--seconds", "3000"]
    status = bench_gpu.main([*usual, *argv], {"public recipe": public_recipe})
    if not status and not argv:
        count_launches()
    return status


def _without_values() -> None:
    """Leaves out what compares values, and the profiler, which needs a driver."""
    from distill.compilation import comparison
    from launch.bench.gpu import steps

    comparison.distance = lambda *_: 0.0
    steps.record_kernels = lambda *_: []  # type: ignore[assignment]


def count_launches() -> None:
    """Prints what one production micro-step of 8 launches, in each mode of train.compile."""
    import torch

    from launch.bench.gpu.steps import Plan, Steps

    library = ctypes.CDLL(str(Path(os.environ[IS_INSIDE]) / "libnull_cudart.so"))
    counters = (library.null_launches, library.null_graph_launches)
    for counter in counters:
        counter.restype = ctypes.c_long
    steps = Steps(Plan(), torch.float16, FOLDER, torch.device("cuda", 0))
    for mode in MODES:
        with steps.fast_path(mode) as path:
            step = replace(steps.workload(8).micro_step(), context=path.active)
            for _ in range(2):
                step()
            before = [counter() for counter in counters]
            step()
            found, graphs = (counter() - start for counter, start in zip(counters, before, strict=True))
            print(f"launches of a micro-step, {mode}: {found}, of which {graphs} are graphs", flush=True)
            step.clear()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
