"""A step on tensors without values costs what the real one does: on a CPU here, and as it was measured on a GPU."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import torch

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.planning.accounting import Accounting
from distill.planning.micro_step import META, MicroStep, UnplannableError, as_on_a_gpu
from launch.bench.saved_memory import plain_convolutions
from launch.bench.savings import guidance_in_two_calls
from launch.bench.workload import make_workload
from tests.helpers.models.mini_model import write_mini

GIB, MIB, TERA, GIGA = 2**30, 2**20, 1e12, 1e9
WITHIN = 0.1

PEAKS = {("none", 1): 4.2, ("none", 2): 5.35, ("none", 4): 7.66, ("none", 8): 12.3, ("all", 4): 3.74, ("all", 8): 4.48}
"""GiB by recomputation and micro-batch: one H200, official size, 512 px, fp16, latents given, the gradients of earlier
steps kept; before convolutions forgot their inputs, and with guidance in two calls (docs/PERFORMANCE.md, "Memory")."""
TFLOPS = {"UNet": 0.846, "WriteNet": 0.286, "VAE": 1.117, "conditions": 0.044, "student": 2.58, "all": 8.27}
"""Of one sample of two lines: a call of each network, the student's forward and backward pass, a phased sample."""
STEPS_256 = {"phased": (279, 1818), "consistency": (294, 1272)}
"""MiB beyond the weights and GFLOP of one sample of 256 px in bf16, measured with real tensors on a CPU."""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that choose a model of a few thousand weights."""
    return write_mini(tmp_path_factory.mktemp("mini"))


def close(value: float) -> object:
    return pytest.approx(value, rel=WITHIN)


def tiny(*changes: str) -> Recipe:
    return load_recipe(DEFAULT_RECIPE, ["data.latents=memory", *changes])


def official(*changes: str) -> Recipe:
    return load_recipe(Path("rtx4090x3.yaml"), ["data.latents=memory", *changes])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("objective", "pixels", "samples"), [("phased", 64, 2), pytest.param("consistency", 128, 4, marks=pytest.mark.slow)]
)
def test_memory_and_arithmetic_of_the_tiny_model_are_those_of_real_tensors(
    objective: str, pixels: int, samples: int, tmp_path: Path
) -> None:
    recipe = tiny(f"objective.name={objective}", f"data.options.resolution={pixels}")
    workload = make_workload(recipe, samples, torch.float32, tmp_path, torch.device("cpu"), constant=True)
    real = workload.micro_step()
    real()
    profile = real.profile()
    planned = MicroStep(recipe, (pixels, pixels), torch.float32).run(samples)
    assert sum(planned.weights.values()) == pytest.approx(profile["weight_bytes"], rel=0.01)
    assert planned.growth == close(profile["growth_bytes"])
    assert sum(planned.flops.values()) / samples == close(profile["flops"])
    assert planned.operations == pytest.approx(
        profile["inputs"] + profile["together"], rel=0.25
    )  # composite ones apart
    assert planned.gradients == 4 * planned.trained


@pytest.mark.heavy
def test_what_a_step_adds_is_made_of_samples(mini: list[str]) -> None:
    step = MicroStep(tiny("data.options.mask_img_prob=0.0", *mini), (128, 128))
    one, three = step.run(1), step.run(3)
    assert three.growth == pytest.approx(3 * one.growth, rel=0.02)
    assert sum(three.flops.values()) == pytest.approx(3 * sum(one.flops.values()), rel=0.02)
    assert one.calls["teacher and target: UNet"] == 2 and one.calls["student: UNet"] == 1
    step.recompute("all")
    assert step.run(3).flops["backward pass"] > three.flops["backward pass"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "words",
    ["objective.name=denoise", "objective.terms.attention_mass.weight=0.1", "lora.kind=dora lora.targets=decoder"],
)
def test_other_recipes_run_too(words: str, mini: list[str]) -> None:
    cost = MicroStep(tiny(*mini, *words.split()), (64, 64)).run(1)
    assert cost.growth > 0 and sum(cost.at_peak.values()) == cost.growth


@pytest.mark.parametrize(
    "words", ["objective.name=recognize data.latents=encode", "objective.terms.ocr_ctc.weight=0.1"]
)
def test_what_needs_values_has_no_plan(words: str) -> None:
    with pytest.raises(UnplannableError, match="operations that do not run without values"):
        MicroStep(tiny(*words.split()), (128, 128))


def before(step: MicroStep) -> AbstractContextManager[object]:
    """The code that was measured: convolutions keep their inputs, and guidance is two calls."""
    stack = ExitStack()
    stack.enter_context(plain_convolutions(step.roles.model))
    stack.enter_context(guidance_in_two_calls())
    return stack


@pytest.mark.slow
def test_peaks_are_those_that_a_gpu_measured() -> None:
    step = MicroStep(official("data.options.max_lines=2"), (512, 512))
    found = {}
    for setting, samples in PEAKS:
        step.recompute(setting)
        with before(step):
            found[setting, samples] = step.run(samples).peak / GIB
    assert found == {key: close(peak) for key, peak in PEAKS.items()}


@pytest.mark.slow
def test_arithmetic_is_that_of_a_gpu() -> None:
    step = MicroStep(official("data.options.max_lines=2"), (512, 512))
    cost = step.run(1)
    flops = {part: count / TERA for part, count in cost.flops.items()}
    calls = 2 * cost.calls["teacher and target: UNet"]  # both branches of guidance are one call of twice as many rows
    found = {
        "UNet": flops["teacher and target: UNet"] / calls,
        "WriteNet": flops["teacher and target: WriteNet"] / 2,
        "VAE": step.encoding_flops() / 2 / TERA,
        "conditions": flops["conditions"],
        "student": flops["student: UNet"] + flops["student: WriteNet"] + flops["backward pass"],
        "all": sum(flops.values()),
    }
    assert found == {part: close(count) for part, count in TFLOPS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("objective", STEPS_256)
def test_the_official_size_at_256_pixels_is_that_of_real_tensors(objective: str) -> None:
    mib, gigaflop = STEPS_256[objective]
    words = ["objective.teacher_steps=1", "objective.teacher_interval=20"] if objective == "consistency" else []
    cost = MicroStep(official(f"objective.name={objective}", *words), (256, 256), torch.bfloat16).run(1)
    assert cost.growth / MIB == close(mib) and sum(cost.flops.values()) / GIGA == close(gigaflop)
    assert sum(cost.weights.values()) / MIB == pytest.approx(2906, rel=0.001)


def test_storages_are_counted_once_while_they_live() -> None:
    accounting = Accounting(META)
    with accounting, accounting.running("a"):
        kept = torch.empty(256, device=META)
        view = kept.view(16, 16).t()
        with accounting.running("b"):
            gone = torch.empty(1024, device=META)
            del gone
        kept.add_(1)
        on_host = torch.zeros(10**6)
    assert view.shape == (16, 16) and on_host.numel()
    assert accounting.peak == 4 * (256 + 1024) and dict(accounting.at_peak) == {"a": 1024, "b": 4096}
    assert +accounting.live == {"a": 1024}


def test_attention_keeps_no_matrix_of_all_pairs() -> None:
    query = torch.empty(1, 2, 4096, 40, dtype=torch.float16, device=META, requires_grad=True)
    accounting = Accounting(META)
    with as_on_a_gpu(accounting, Counter()), accounting:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert accounting.peak < 2 * query.numel() * 2
    assert accounting.flops.total() == 2 * 2 * 2 * 4096**2 * 40
