"""The sections that measure sampling and fp16 accumulation, and the model of three RTX 4090."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, cast

from distill.checks.teacher_precision import ACCUMULATION_LIMIT, accumulation_distance
from distill.compilation.capture import CudaCapture
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import release
from distill.inference.model import make_schedule
from distill.inference.variants.captured import sampled_networks
from distill.runtime.device_settings import require_fp16_accumulation
from launch.bench import bench_sampling
from launch.bench.gpu.steps import Steps
from launch.bench.zero.communication import LINKS, LORA_VALUES, Computation, schemes, send_seconds

if TYPE_CHECKING:
    from peft import PeftModel

RTX4090 = {"float16": 165e12, "copy": 1.008e12}
"""By the maker: fp16 matrix products with fp32 accumulation, FLOPs a second; bytes a second."""
GPUS, SAMPLES = 3, 48
CAPTURES = 64
"""Sets of all rows: two networks of three models, and a decoder, for each batch."""


def measure_sampling(steps: Steps, rows: dict[str, Any]) -> None:
    """Seconds a picture of each way to sample, and on a GPU the same with captured networks (`--graphs`).

    rows: batch -> label -> seconds of the conditions and of everything.
    """
    wrapped, recipe = cast("PeftModel", steps.roles.wrapped), steps.recipe
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    plain = bench_sampling.rows_of(wrapped, recipe, steps.device, steps.dtype)
    schedule = make_schedule(steps.roles.model.cfg)
    try:
        for captured in (False, True) if steps.device.type == "cuda" else (False,):
            found = captured_rows(plain) if captured else plain
            for size in steps.plan.sampling_batches:
                batch = replace(steps.workload(size).loaded.batch, posterior=None, masked_latent=None)
                timings = bench_sampling.time_rows(found, batch, schedule, recipe, steps.plan.repeats)
                rows.setdefault(str(size), {}).update({timing.row: asdict(timing) for timing in timings})
    finally:
        release_rows(plain)
        for p in trained:
            p.requires_grad_(True)


def captured_rows(rows: list[bench_sampling.Row]) -> list[bench_sampling.Row]:
    """The same rows with UNet, WriteNet and decoder as CUDA graphs."""
    calls = GraphedCalls(CudaCapture(), lambda line: print(f"  {line}", flush=True), limit=CAPTURES)
    for model in _models(rows):
        calls.capture(sampled_networks(model))
    return [replace(row, label=f"{row.label}, captured", context=calls.active) for row in rows]


def _models(rows: list[bench_sampling.Row]) -> list[Any]:
    """The networks that compute in the rows, each once."""
    found = {}
    for row in rows:
        model = row.roles.model
        if row.spec.role == "teacher":
            with row.roles.teacher() as model:
                pass
        found[id(model)] = model
    return list(found.values())


def release_rows(rows: list[bench_sampling.Row]) -> None:
    """The networks run as written again."""
    for model in _models(rows):
        release(model)


def measure_accumulation(steps: Steps, found: dict[str, Any]) -> None:
    """How far fp16 accumulation moves the noise of the teacher; of drawn weights it tells the order of magnitude."""
    require_fp16_accumulation()
    batch = steps.workload(1).loaded.batch.to(steps.device).normalized()
    with steps.roles.teacher() as teacher:
        latent = teacher.encode(batch.image)
        conditions = teacher.encode_conditions(batch, latent)
    found |= {"distance": accumulation_distance(steps.roles, latent, conditions), "limit": ACCUMULATION_LIMIT}


def project(rates: Mapping[str, float], rows: Mapping[str, Mapping[str, Any]], found: dict[str, Any]) -> None:
    """An update of 48 samples on three RTX 4090, from the parts of a micro-step that was measured on one card.

    The time of matrix kernels grows by the ratio of the matrix rates, that of all others by the ratio of bandwidths,
    the host stays as fast, and the ranks wait for all of the communication. rows: name -> row of `measure_step`.
    """
    slower = {name: rates[name] / RTX4090[name] for name in RTX4090}
    for name, row in rows.items():
        if row.get("busy_seconds") is None:
            continue
        matrix = row["matrix_seconds"] * slower["float16"]
        memory = max(0.0, row["busy_seconds"] - row["matrix_seconds"]) * slower["copy"]
        samples = row["samples"]
        computation = Computation((matrix + memory) / samples, row["host_seconds"], samples)
        micro_steps, seconds = computation.update(SAMPLES // GPUS)
        sent = send_seconds(schemes(LORA_VALUES, micro_steps)[0], GPUS, LINKS[0])
        found[name] = {
            "matrix_seconds": matrix,
            "memory_seconds": memory,
            "host_seconds": row["host_seconds"],
            "communication_seconds": sent,
            "update_seconds": seconds + sent,
            "samples_per_second": SAMPLES / (seconds + sent),
        }
