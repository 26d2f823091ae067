"""launch/train.py from the command line to the checkpoint, on a mini model, with one, two and three ranks."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.checkpoint.formats import read_adapter, read_trainer_state
from distill.checkpoint.run_folder import RUN_INFO
from distill.checkpoint.store import find_checkpoint
from distill.config.recipes import load_recipe
from distill.inference.model import make_model
from launch import train
from tests.helpers.paths import ROOT
from tests.helpers.processes.ports import free_port
from tests.helpers.processes.ranks import CPU_ONLY, RankResult, all_output, returned, run_ranks, start_ranks
from tests.helpers.processes.train_patches import after_run, before_run, overflow_in
from tests.helpers.processes.training_runs import (
    OBJECTIVE,
    RECIPE,
    SMALL_BATCH,
    TrainingFolder,
    assert_one_error,
    train_command,
)

pytestmark = pytest.mark.process

PICTURES = 60
CURVE_STEPS = 6  # of which four warm up; as a slow test 20
SIX_UPDATES = [*SMALL_BATCH, "lora.dropout=0.1", "train.ema_decay=0.5", "train.max_steps=6"]
POISONED = (2, 3)  # global batches; the shipped fp16 configuration forgives one overflow before it halves the scale


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    return TrainingFolder.create(tmp_path_factory.mktemp("train"), PICTURES)


# --- what the ranks do ---


@dataclass(frozen=True)
class Observed:
    """changed: names of the parameters and buffers that the run has changed; all: of all that there are (none where it
    failed); rates: global batch and learning rate of each optimizer step."""

    exit_code: int
    changed: set[str]
    all: set[str]
    rates: list[tuple[int, float]]


def observe(argv: list[str], overflows: tuple[int, ...] = ()) -> Observed:
    """The command, with a look at the weights before and after, and at the learning rate of each optimizer step.

    overflows: global batches in which the last rank's loss has an infinite gradient.
    """
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    rates: list[tuple[int, float]] = []

    def prepare(trainer: Any) -> None:
        engine, original = trainer.engine, trainer.engine.step

        def step(rate: float, *rest: float) -> Any:
            result = original(rate, *rest)
            rates.append((trainer.progress.batches, rate))
            return result

        engine.step = step
        overflow_in(trainer, overflows)
        before.update({name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()})

    before_run(prepare)
    after_run(lambda trainer: after.update(trainer.engine.module.state_dict()))
    exit_code = train.main(argv)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    return Observed(exit_code, changed, set(after), rates)


# --- the same run on any number of ranks ---


@dataclass(frozen=True)
class Curves:
    """Runs of so many updates at effective batch 48, by their number of ranks."""

    steps: int
    results: dict[int, list[RankResult]]

    def name(self, world: int) -> str:
        return f"world{world}-{self.steps}"


@pytest.fixture(scope="module", params=[CURVE_STEPS, pytest.param(20, marks=pytest.mark.slow)])
def curves(runs: TrainingFolder, request: pytest.FixtureRequest) -> Curves:
    found = Curves(request.param, {})
    changes = (f"train.max_steps={found.steps}", "lora.dropout=0.1")  # dropout too is drawn by sample, not by rank
    started = {world: start_ranks(world, train_command, runs.argv(found.name(world), *changes)) for world in (1, 2, 3)}
    found.results.update({world: ranks.wait() for world, ranks in started.items()})
    return found


def test_the_loss_curve_does_not_depend_on_the_world_size(runs: TrainingFolder, curves: Curves) -> None:
    for results in curves.results.values():
        returned(results)
    alone = runs.metrics(curves.name(1))
    assert list(alone) == list(range(1, curves.steps + 1)) and len(set(alone.values())) == curves.steps
    for world in (2, 3):
        other = runs.metrics(curves.name(world))
        assert list(other) == list(alone)
        largest = max(abs(other[step] / alone[step] - 1.0) for step in alone)
        print(f"loss over {curves.steps} updates, 1 rank against {world}: largest relative difference {largest:.1e}")
        assert largest < 1e-5
        norms = tuple(runs.metrics(curves.name(n), "train/grad_norm") for n in (1, world))
        assert list(norms[0].values()) == pytest.approx(list(norms[1].values()), rel=1e-3)


def test_the_adapters_of_all_world_sizes_agree(runs: TrainingFolder, curves: Curves) -> None:
    adapters = {world: read_adapter(find_checkpoint(runs.run_dir(curves.name(world))))[0] for world in curves.results}
    for name, tensor in adapters[1].items():
        for world in (2, 3):
            assert (adapters[world][name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def test_each_run_says_what_it_is(runs: TrainingFolder, curves: Curves) -> None:
    sizes = {}
    for world, results in curves.results.items():
        facts = json.loads((runs.run_dir(curves.name(world)) / RUN_INFO).read_text())
        assert (facts["ranks"], facts["precision"], facts["effective_batch"]) == (world, "fp32", 48)
        assert facts["accumulation"] == 6 // world and len(facts["optimizer_bytes_per_rank"]) == world
        sizes[world] = facts["optimizer_bytes_per_rank"]
        whole = 12 * facts["trained_parameters"]
        assert whole <= sum(sizes[world]) <= whole + 12 * 2 * world  # the flat weights are padded
        said = results[0].stdout
        ranks = f"{world} rank{'s' if world > 1 else ''} on the CPU"
        assert f"No GPU here: zero2.json (fp16) falls back to zero2_cpu.json (fp32), {ranks}" in said
        assert f"effective batch 48 = 8 x {6 // world} x {world}" in said
        assert "warning" not in said
        assert all(not r.stdout for r in results[1:]), all_output(results)  # only rank 0 talks
    print("optimizer bytes per rank:", sizes)


# --- what is trained ---


@pytest.fixture(scope="module")
def straight(runs: TrainingFolder) -> tuple[RankResult, Observed]:
    """Six updates without a break."""
    (result,) = run_ranks(1, observe, runs.argv("straight", *SIX_UPDATES))
    return result, returned([result])[0]


def test_every_lora_tensor_changes_and_nothing_else(straight: tuple[RankResult, Observed]) -> None:
    _, seen = straight
    assert seen.exit_code == 0
    lora = {name for name in seen.all if ".lora_" in name}
    assert len(lora) > 50 and len(seen.all) > 3 * len(lora)
    assert seen.changed == lora


def test_an_unusual_batch_is_warned_of(straight: tuple[RankResult, Observed]) -> None:
    assert "warning: train.effective_batch=8 is outside 32-64" in straight[0].stdout


def test_the_rate_warms_up_update_by_update(runs: TrainingFolder, straight: tuple[RankResult, Observed]) -> None:
    assert straight[1].rates == [(batch, 2e-3 * min(1.0, (batch + 1) / 4)) for batch in range(6)]


# --- the end (tests/distill/training/test_resume.py stops runs and goes on with them) ---


def test_a_finished_run_stays_as_it_is(runs: TrainingFolder, straight: tuple[RankResult, Observed]) -> None:
    before = (runs.run_dir("straight") / "metrics.jsonl").read_bytes()
    returned(run_ranks(1, train_command, runs.argv("straight", *SIX_UPDATES)))
    assert (runs.run_dir("straight") / "metrics.jsonl").read_bytes() == before


# --- a teacher instead of a student ---


def test_trained_weights_are_written_and_lie_over_others(runs: TrainingFolder) -> None:
    recipe = runs.folder / "teacher.yaml"
    recipe.write_text(RECIPE.replace(OBJECTIVE, "{name: denoise, scope: official}"))
    argv = [*runs.argv("teacher", *SMALL_BATCH, "train.max_steps=1"), "--config", str(recipe)]
    (seen,) = returned(run_ranks(1, observe, argv))
    changed = {name.removeprefix("net.") for name in seen.changed}
    assert any(name.startswith("control_model.") for name in changed)
    assert not any(name.startswith(("first_stage_model.", "text_predictor.", "cond_stage_model.")) for name in changed)
    section = load_recipe(recipe, list(runs.model)).model
    before = make_model(section, 0).state_dict()
    after = make_model(replace(section, parts=[str(runs.run_dir("teacher"))]), 0).state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed


# --- fp16 ---


@pytest.mark.parametrize("world", [1, 2])
def test_an_overflow_advances_neither_schedule_nor_counter(runs: TrainingFolder, world: int) -> None:
    name = f"fp16-{world}"
    batch = ["train.effective_batch=4", "train.micro_batch=2"]
    argv = runs.argv(name, *batch, "train.max_steps=4", "train.fp16_on_cpu=true", "train.ema_decay=0.5")
    results = run_ranks(world, observe, argv, POISONED)
    for seen in returned(results):
        assert seen.exit_code == 0
        # Batches 2 and 3 overflow: the rate of the third update, 3/4 of the full one, is tried three times.
        assert seen.rates == [(b, 2e-3 * min(1.0, (u + 1) / 4)) for b, u in enumerate([0, 1, 2, 2, 2, 3])]
        assert {n for n in seen.changed if ".lora_" not in n} == set()
    assert "DeepSpeed ZeRO-2: fp16" in results[0].stdout
    scales = runs.metrics(name, "health/loss_scale")
    assert list(scales) == [1, 2, 3, 4] and scales[3] == scales[2] / 2 == 2.0**15
    assert list(runs.metrics(name, "health/skipped_updates").values()) == [0, 0, 2, 2]
    state = read_trainer_state(find_checkpoint(runs.run_dir(name)))
    assert (state.step, state.batches, state.skipped_steps) == (4, 6, 2)
    assert state.loss_scaler["cur_scale"] == 2.0**15


def test_in_fp32_a_gradient_that_is_not_finite_ends_the_run(runs: TrainingFolder) -> None:
    argv = runs.argv("nan", *SMALL_BATCH, "train.max_steps=4")
    (result,) = run_ranks(1, observe, argv, POISONED)
    assert returned([result])[0].exit_code == 1, all_output([result])
    assert "error: update 3: the gradient is not finite in fp32; last samples of this rank: " in result.stderr
    assert not any(runs.run_dir("nan").glob("checkpoint-*"))


# --- the launcher ---


def test_the_launcher_runs_one_rank_on_a_machine_without_gpu(runs: TrainingFolder) -> None:
    argv = runs.argv("launched", *SMALL_BATCH, "train.max_steps=2", "tracking.enabled=true", "log.preview_every=2")
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port()), "launch/train.py"]
    environment = os.environ | CPU_ONLY | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([*launcher, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "No GPU here: zero2.json (fp16) falls back to zero2_cpu.json (fp32), 1 rank on the CPU" in done.stdout
    run_dir = runs.run_dir("launched")
    assert (run_dir / "audit.png").stat().st_size > 1000 and list((run_dir / "previews").glob("*.png"))
    store = sqlite3.connect(run_dir.parent / "mlflow.db")
    parameters = dict(store.execute("select key, value from params"))
    assert parameters["recipe.train.effective_batch"] == "8" and parameters["run.ranks"] == "1"
    assert parameters["recipe.objective.w_max"] == "4.0" and parameters["deepspeed.zero_optimization.stage"] == "2"
    logged = {key for (key,) in store.execute("select distinct key from metrics")}
    assert {
        "train/loss",
        "train/learning_rate",
        "health/loss_scale",
        "train/grad_norm",
        "speed/samples_per_second",
    } <= logged
    assert [status for (status,) in store.execute("select status from runs")] == ["FINISHED"]
    store.close()


# --- pictures that cannot be read ---


def test_a_few_unreadable_pictures_are_passed_over_counted_and_reported(runs: TrainingFolder) -> None:
    """Every tenth of 60 is broken; 80 samples are one whole epoch and a part of the next."""
    argv = runs.argv("patchy", "train.max_steps=2", "train.effective_batch=40", "data.max_unreadable=0.5")
    (result,) = run_ranks(1, train_command, [*argv, runs.damaged_data("patchy_data", 10), "data.workers=1"])
    returned([result])
    lines = [line for line in result.stdout.splitlines() if "could not be read and were replaced" in line]
    assert lines and lines[-1].startswith("data: ") and " of 80 samples" in lines[-1], all_output([result])
    counted = read_trainer_state(find_checkpoint(runs.run_dir("patchy"))).extra["unreadable"]
    assert len(counted) == 2 and sum(counted.values()) >= 6  # missing ones, and broken ones
    assert f"data: {sum(counted.values())} of 80 samples" in lines[-1]


def test_too_many_unreadable_pictures_stop_all_ranks_with_one_line(runs: TrainingFolder) -> None:
    argv = runs.argv("holes", "train.max_steps=9", "train.effective_batch=48", "train.micro_batch=8")
    results = run_ranks(2, train_command, [*argv, runs.damaged_data("holes_data", 3)])
    assert_one_error(results, "data.sources: ", "of 48 samples could not be read", "data.max_unreadable=0.05")


def test_a_data_root_that_is_elsewhere_is_one_line_even_from_a_worker(runs: TrainingFolder) -> None:
    argv = runs.argv("nothing", *SMALL_BATCH, runs.damaged_data("nothing_data", 1), "data.workers=1")
    assert_one_error(run_ranks(1, train_command, argv), "data.sources: neither item ", "data_root")


# --- mistakes ---


def test_mistakes_in_the_recipe_are_one_line(runs: TrainingFolder) -> None:
    assert_one_error(run_ranks(1, train_command, [*runs.argv("e"), "--config", "no.yaml"]), "no.yaml: no such file")
    results = run_ranks(3, train_command, runs.argv("e", "train.stepz=1"))
    assert_one_error(results, "train.stepz", "known there: max_steps")
    results = run_ranks(1, train_command, runs.argv("e", "train.micro_batch=5"))
    assert_one_error(results, "train.effective_batch=48", "micro_batch=5", "may be 1, 2, 3, 4, 6, 8")
    assert not runs.run_dir("e").exists()


def test_mistakes_in_the_files_are_one_line(runs: TrainingFolder) -> None:
    broken = runs.folder / "broken.json"
    broken.write_text('{"data_list": [')
    assert_one_error(run_ranks(1, train_command, runs.argv("f", f"data.sources=[{broken}]")), "broken.json: not JSON")
    broken.write_text('{"data_root": "", "data_list": [{"caption": "x"}]}')
    results = run_ranks(2, train_command, runs.argv("f", f"data.sources=[{broken}]"))
    assert_one_error(results, "broken.json: data_list[0].img_name: missing")
    missing = runs.folder / "nowhere.ckpt"
    results = run_ranks(1, train_command, runs.argv("f", f"model.weights={missing}"))
    assert_one_error(results, f"{missing}: no such weights file")
    results = run_ranks(1, train_command, [*runs.argv("f"), "--deepspeed", str(broken)])
    assert_one_error(
        results, f"--deepspeed {broken}: ", "DeepSpeed has no such key", "zero_optimization.stage is missing"
    )


def test_a_checkpoint_of_another_run_is_not_resumed(
    runs: TrainingFolder, straight: tuple[RankResult, Observed]
) -> None:
    folder = runs.run_dir("straight") / "checkpoint-6"
    results = run_ranks(1, train_command, runs.argv("g", f"checkpoint.resume={folder}", *SMALL_BATCH, "seed=5"))
    assert_one_error(results, str(folder), "seed: 0 -> 5", "order of samples would change", "checkpoint.allow=[seed]")
    results = run_ranks(1, train_command, runs.argv("g", f"checkpoint.resume={folder}", *SMALL_BATCH, "lora.rank=3"))
    assert_one_error(results, "adapter_config.json", "r=2, the recipe has lora.rank=3")
    assert not runs.run_dir("g").exists()
    results = run_ranks(1, train_command, runs.argv("straight", "checkpoint.resume=never"))
    assert_one_error(results, str(runs.run_dir("straight")), "checkpoint.resume=never")
