"""What is computed from measured figures: busy time, the model of three cards, the bars, the report's name."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from launch.bench.gpu.bench_gpu import report_name
from launch.bench.gpu.card import measure_rates
from launch.bench.gpu.kernels import Kernel, busy_seconds, matrix_seconds, record_kernels
from launch.bench.gpu.other_sections import RTX4090, project
from launch.bench.gpu.report import Bar, bars, format_report
from launch.bench.gpu.steps import add_row, measure_step
from launch.bench.workload import MicroStep
from launch.bench.zero.communication import LINKS, LORA_VALUES, schemes, send_seconds

CPU = torch.device("cpu")
KERNELS = [
    Kernel("sm90_xmma_gemm_f16", ((0.0, 2.0), (5.0, 6.0))),
    Kernel("elementwise_kernel", ((1.0, 3.0), (5.5, 5.75))),
    Kernel("Memcpy HtoD", ((8.0, 9.0),)),
]


def test_overlapping_kernels_are_counted_once() -> None:
    assert busy_seconds(KERNELS) == pytest.approx(3.0 + 1.0 + 1.0)
    assert matrix_seconds(KERNELS) == pytest.approx(3.0) and KERNELS[1].seconds == pytest.approx(2.25)
    assert busy_seconds([]) == 0.0 and record_kernels(lambda: None, CPU) == []


def row(rate: float, **others: Any) -> dict[str, Any]:
    usual = {"samples": 8, "seconds": 8 / rate, "samples_per_second": rate, "host_seconds": 0.1, "first_seconds": 1.0}
    return {**usual, "busy": 0.97, "utilisation": 0.41, "peak_gib": 8.0, "notes": "", **others}


def test_a_generated_kernel_is_no_matrix_product_by_its_name() -> None:
    names = ("triton_poi_fused_convolution_silu_4", "sm90_xmma_fprop_implicit_gemm", "vectorized_elementwise_kernel")
    assert [Kernel(name, ()).is_matrix for name in names] == [False, True, False]


def test_the_model_of_three_cards() -> None:
    """Matrix kernels four times and the others twice as long; the host as fast: 16 samples are two micro-steps of 8."""
    rates = {"float16": 4 * RTX4090["float16"], "copy": 2 * RTX4090["copy"]}
    rows = {"graphs": row(10.0, busy_seconds=0.3, matrix_seconds=0.2), "none": {"error": "does not fit"}}
    found: dict[str, Any] = {}
    project(rates, rows, found)
    sent = send_seconds(schemes(LORA_VALUES, 2)[0], 3, LINKS[0])
    assert list(found) == ["graphs"]
    assert found["graphs"]["matrix_seconds"] == pytest.approx(0.8)
    assert found["graphs"]["memory_seconds"] == pytest.approx(0.2)
    assert found["graphs"]["update_seconds"] == pytest.approx(2 * 1.0 + sent)
    project(rates, {"none": row(10.0, busy_seconds=0.03, matrix_seconds=0.02, host_seconds=0.7)}, found)
    assert found["none"]["update_seconds"] == pytest.approx(2 * 0.7 + sent)


def results() -> dict[str, Any]:
    values: dict[str, Any] = {
        "card": {"float16": 7e14, "copy": 3e12},
        "eager": {"none, 8": row(20.0), "none, 16": {"error": "does not fit"}},
        "graphs": {"graphs, 8": row(36.0, busy=0.9)},
        "blocks": {"blocks, 8": row(99.0, fell_back=True)},
        "before": {"now": row(20.0), "before": row(11.0)},
        "public recipe": {
            "cached, 8": row(21.0),
            "online, 8": row(15.0),
            "cached, graphs, 8": row(30.0),
            "public recipe, 8": row(8.0),
            "public recipe, contiguous, 8": row(7.0, peak_gib=16.0),
        },
        "sampling": {
            "1": {
                "teacher 20 guided": {"conditions": 0.05, "total": 1.0},
                "student 4": {"conditions": 0.05, "total": 0.2},
                "student 4 merged": {"conditions": 0.05, "total": 0.11},
                "student 4 merged, captured": {"conditions": 0.05, "total": 0.08},
                "teacher 20 guided, captured": {"conditions": 0.05, "total": 0.9},
            }
        },
        "kernels": {"none": [{"name": "gemm", "calls": 3, "seconds": 0.02}]},
        "accumulation": {"distance": 0.0012, "limit": 0.01},
    }
    sections = {name: {"seconds": 1.0, "error": "", "values": found} for name, found in values.items()}
    sections["blocks"] |= {"seconds": 180.0, "error": "stopped after its 180 s"}
    card = {"date": "2026-12-01", "device": "NVIDIA H100 80GB HBM3", "torch": "2.11.0+cu130"}
    return {"card": card, "cap_gib": 22.5, "tiny": False, "batch": 8, "sections": sections}


def test_the_bars_take_the_best_setting_and_the_recipe_as_it_is_written() -> None:
    values = [bar.value for bar in bars(results())]
    expected = [36 / 11, 0.41, 0.9, 30 / 7, 15 / 7, 0.5, 0.9 / 0.08, 0.08]
    assert values == pytest.approx(expected)
    assert str(Bar("peak", 0.55, 0.5, True)) == "| peak | <= 0.55 | 0.5 | reached |"
    assert str(Bar("busy", 0.95, 0.9)).endswith("| 0.9 | not reached |")


def test_the_report_has_all_tables() -> None:
    text = format_report(results())
    for words in (
        "# NVIDIA H100 80GB HBM3, 2026-12-01\n",
        "The allocator was limited to 22.5 GiB.",
        "| float16 | 700 TFLOP |",
        "| `none, 16` | does not fit |",
        "| `gemm` | 3 | 20.00 |",
        "| student 4 merged | 1 | 0.050 | 0.110 | 8.2 |",
        "0.12% under fp16 accumulation",
        "| blocks | 180.0 | stopped after its 180 s |",
    ):
        assert words in text, words
    tables = [line.count("|") for line in text.splitlines() if line.startswith("| `none, ")]
    assert len(set(tables)) == 1
    assert report_name(results()["card"]) == "2026-12-01-nvidia-h100-80gb-hbm3.md"


def test_rates_of_this_machine() -> None:
    rates: dict[str, Any] = {}
    measure_rates(CPU, 16, 1, rates)
    assert {"float16", "bfloat16", "copy"} <= set(rates) and all(rate > 0 for rate in rates.values())


def test_a_step_that_does_not_fit_is_a_row() -> None:
    weight = nn.Parameter(torch.ones(1))

    def loss(item: torch.Tensor) -> torch.Tensor:
        if fails:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return (weight * item).sum()

    network = nn.ParameterList([weight])
    step = MicroStep(lambda: torch.ones(1), loss, network, (weight,), 2, CPU, nullcontext)
    rows: dict[str, Any] = {}
    fails = False
    add_row(rows, "fits", lambda: measure_step(step, 1, flops=10, rate=1e3))
    fails = True
    add_row(rows, "large", lambda: measure_step(step, 1))
    assert rows["large"] == {"error": "does not fit"}
    assert rows["fits"]["utilisation"] == pytest.approx(10 * rows["fits"]["samples_per_second"] / 1e3)
