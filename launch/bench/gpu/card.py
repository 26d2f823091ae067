"""What a card can do: its name and memory, and its measured rates of matrix products and copies."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from distill.runtime.device_settings import fp16_accumulation, require_fp16_accumulation
from launch.bench.measure import describe, median_seconds

GIB = 2**30


def describe_card(device: torch.device) -> dict[str, Any]:
    """`describe`, and the memory and the software of a GPU."""
    facts = describe(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "memory_gib": round(properties.total_memory / GIB, 1),
            "processors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return facts


def _driver() -> str:
    """The version of the NVIDIA driver as the kernel tells it; empty where it does not."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit()), "")


def measure_rates(device: torch.device, side: int, repeats: int, rates: dict[str, Any]) -> None:
    """FLOPs a second of matrix products of that side by dtype, and bytes a second of copies (read and written)."""
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float16, fp16 accumulation": torch.float16}
    for name, dtype in kinds.items():
        accumulates = "accumulation" in name
        if accumulates:
            try:
                require_fp16_accumulation()
            except ValueError:
                continue
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        with fp16_accumulation(True) if accumulates else nullcontext():
            rates[name] = 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=out), device, repeats)  # noqa: B023
    source = torch.empty(16 * side * side, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.numel() / _seconds(lambda: target.copy_(source), device, repeats)


def _seconds(call: Any, device: torch.device, repeats: int) -> float:
    """Of one call, where ten follow each other."""

    def ten() -> None:
        for _ in range(10):
            call()

    return median_seconds({"": ten}, device, repeats, warmups=2)[""] / 10
