"""Memory of a GPU, time and storage that follow from a step's cost, and what is said about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import Recipe
from distill.planning import plan as plans
from distill.planning.memory import GIB, RESERVE, Division, divisions, gpu_memory, optimizer_bytes
from distill.planning.micro_step import StepCost, UnplannableError
from distill.planning.plan import Machine, Plan, count_pictures, make_plan, memory_warning
from distill.planning.report import report, verdict
from distill.planning.speed import SECONDS_AN_OPERATION, estimate_speed
from tests.helpers.models.mini_model import write_mini
from tests.helpers.paths import ROOT

COST = StepCost(
    samples=4,
    weights={"UNet": 2 * GIB, "LoRA": GIB},
    trained=GIB // 16,
    gradients=GIB // 8,
    growth=4 * GIB,
    at_peak={"student: UNet": 3 * GIB, "conditions": GIB},
    flops={"student: UNet": 10**12, "backward pass": 3 * 10**12},
    operations=1000,
    calls={"student: UNet": 1},
)
RECIPE = load_recipe(DEFAULT_RECIPE)
MACHINE = Machine(gpus=3, memory=24, flops=165e12, utilisation=0.2)


def test_the_optimizer_s_part_is_that_of_real_runs() -> None:
    """Of a run whose engine counted its bytes; a step counter of 4 bytes is beside them."""
    facts = json.loads((ROOT / "tests/golden/run_before_restructuring/run/run.json").read_text())
    counted = facts["optimizer_bytes_per_rank"][0]
    assert optimizer_bytes(RECIPE, facts["trained_parameters"], facts["ranks"]) == pytest.approx(counted, abs=64)
    averaged = replace(RECIPE, train=replace(RECIPE.train, ema_decay=0.9))
    assert optimizer_bytes(averaged, 300, 3) == 4 * 4 * 100


def test_parts_add_up_and_grow_with_the_samples() -> None:
    memory = gpu_memory(RECIPE, COST, 3)
    kept = 3 * GIB + GIB // 8 + GIB // 4 + GIB // 4 + RESERVE  # weights, gradients, their sum, a third of the optimizer
    assert memory.peak == pytest.approx(kept + 4 * GIB, abs=64)
    assert memory.parts["activations of the student"] == 3 * GIB and memory.parts["other"] == 0
    assert gpu_memory(RECIPE, COST, 3, 8).peak - memory.peak == 4 * GIB


def test_divisions_fit_the_gpu_and_the_batch() -> None:
    found = list(divisions(RECIPE, COST, 3, 12 * GIB))
    assert found and all(32 <= d.effective <= 64 and d.peak <= 12 * GIB for d in found)
    assert {d.micro for d in found} == {1, 2, 4, 6}
    assert (4, 4, 48) in {(d.micro, d.accumulation, d.effective) for d in found}


def test_the_slower_of_gpu_and_host_decides() -> None:
    speed = estimate_speed(COST, 100e12, 0.5, 3)
    assert speed.gpu == pytest.approx(4 / 50) and speed.samples_per_second == pytest.approx(3 * 4 / speed.gpu)
    assert "arithmetic" in speed.limit and speed.hours(100, 48) == pytest.approx(4800 / speed.samples_per_second / 3600)
    busy = estimate_speed(replace(COST, operations=10**4), 100e12, 0.5, 1)
    assert busy.samples_per_second == pytest.approx(4 / (1e4 * SECONDS_AN_OPERATION)) and "Python" in busy.limit


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    mini = write_mini(tmp_path_factory.mktemp("mini"))
    return make_plan(load_recipe(DEFAULT_RECIPE, [*mini, "data.options.resolution=64"]), MACHINE)


@pytest.mark.heavy
def test_the_report_says_everything(plan: Plan) -> None:
    text = "\n".join(report(plan, 1000))
    for words in ("| **peak** |", "TFLOP |", "samples/s", "micro x accumulation", "GiB on disk", "Memory of the host"):
        assert words in text
    assert "effective batch 48 = 8 x 2 x 3 GPUs" in text and text.splitlines()[-1].startswith("fits: about 1.")
    assert plan.cache.latents * 0.75 == 6 * 3 * 8 * 8  # as launch/build_lmdb_cache.py estimates them
    assert "Feature cache of 1,000,000 pictures (how many" in "\n".join(report(plan, None))


@pytest.mark.heavy
def test_what_does_not_fit_names_what_would(plan: Plan) -> None:
    peaks = {name: memory.peak / GIB for name, memory in plan.memory.items()}
    between = (peaks["none"] + peaks["selective"]) / 2
    tight = replace(plan, machine=replace(MACHINE, memory=between), divisions={name: [] for name in peaks})
    assert not tight.fits
    assert verdict(tight).endswith("model.activation_checkpointing=selective or model.activation_checkpointing=all")
    wide = replace(tight, divisions={"none": [Division(4, 4, 48, GIB), Division(6, 3, 54, GIB)]})
    assert "; train.micro_batch=4 or model.activation_checkpointing=selective or" in verdict(wide)
    none = replace(tight, machine=replace(MACHINE, memory=0.5))
    assert verdict(none).endswith("nothing here helps: take a card with more")


def official(*changes: str) -> Recipe:
    return load_recipe(Path("rtx4090x3.yaml"), list(changes))


def test_a_training_warns_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Planned:
        def __init__(self, recipe: Recipe, size: tuple[int, int]) -> None:
            if recipe.seed == 1:
                raise UnplannableError("needs values")

        def run(self, samples: int) -> StepCost:
            return COST

    monkeypatch.setattr(plans, "MicroStep", Planned)
    warning = memory_warning(official(), 3, 8 * GIB)
    assert warning.startswith(
        "about 8.6 GiB are needed on each GPU, and it has 8.0: lower train.micro_batch=8, or model."
    )
    assert "\n" not in warning
    assert memory_warning(official(), 3, 24 * GIB) == "" == memory_warning(official("seed=1"), 3, GIB)
    assert memory_warning(RECIPE, 3, 1) == ""  # a small model is not planned


def test_pictures_are_counted_where_that_is_quick(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('{"data_list": [{"img_name": "a"}, {"img_name": "b"}]}')
    recipe = load_recipe(DEFAULT_RECIPE, [f"data.sources=[{file}]"])
    assert count_pictures(recipe, None) == 2 and count_pictures(recipe, 7) == 7
    assert count_pictures(recipe, None, most_bytes=1) is None and count_pictures(official(), None) is None
    assert count_pictures(RECIPE, None) == RECIPE.data.synthetic.count
