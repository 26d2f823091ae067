"""launch/train.py with the deterministic kernels of torch: `python -m tests.helpers.processes.deterministic_training
BATCH ARGUMENTS`. Global batch number BATCH overflows in fp16 (-1: none)."""

from __future__ import annotations

import os
import sys
from typing import Any

import anytext2  # noqa: F401  # before peft

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs, before it starts

import torch

from distill.training import build
from launch import train
from tests.helpers.processes.train_patches import before_run, overflow_in


def main(argv: list[str]) -> int:
    torch.use_deterministic_algorithms(True, warn_only=True)
    for kind in ("flash", "mem_efficient", "cudnn"):  # their backward passes add up in any order
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(False)
    original = build.apply_device_settings

    def without_search(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        torch.backends.cudnn.benchmark = False  # it may find another kernel in each process

    build.apply_device_settings = without_search
    before_run(lambda trainer: overflow_in(trainer, (int(argv[0]),)))
    return train.main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
