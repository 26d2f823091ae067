"""launch/train.py from the command line to the checkpoint, on a mini model, with one, two and three ranks."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.checkpoint.formats import read_adapter, read_trainer_state
from distill.checkpoint.run_folder import RUN_INFO
from distill.checkpoint.store import find_checkpoint
from distill.config.recipes import load_recipe
from distill.inference.model import make_model
from distill.training.trainer import Trainer
from launch import train
from tests.helpers.mini_model import write_mini
from tests.helpers.paths import ROOT
from tests.helpers.ranks import CPU_ONLY, RankResult, free_port, returned, run_ranks, start_ranks, told

ZERO2 = ROOT / "ds_configs" / "zero2.json"
PICTURES = 60
CURVE_STEPS = 20
SMALL_BATCH = ["train.effective_batch=8", "train.micro_batch=4"]
SIX_UPDATES = [*SMALL_BATCH, "lora.dropout=0.1", "train.ema_decay=0.5", "train.max_steps=6"]
POISONED = (2, 3)  # global batches; the shipped fp16 configuration forgives one overflow before it halves the scale

OBJECTIVE = "{name: consistency, w_min: 2.0, w_max: 4.0, solver_steps: 10, lcm_step: 100}"
RECIPE = f"""
name: mini
data:
  workers: 0
  options: {{resolution: 64, max_lines: 1}}
objective: {OBJECTIVE}
lora: {{rank: 2, alpha: 4}}
train: {{micro_batch: 8, learning_rate: 2.0e-3, warmup_steps: 4, weight_decay: 0.0, threads: 1}}
log: {{every: 1}}
tracking: {{enabled: false}}
"""


@dataclass(frozen=True)
class Workplace:
    """A recipe file and pictures; run folders are made beside them."""

    folder: Path
    changes: tuple[str, ...]

    def argv(self, name: str, *changes: str) -> list[str]:
        own = [*self.changes, f"data.sources=[{self.folder / 'data' / 'data.json'}]", f"name={name}", *changes]
        return ["--deepspeed", str(ZERO2), "--config", str(self.folder / "recipe.yaml"), *own]

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def metrics(self, name: str, key: str = "loss") -> dict[int, float]:
        """Step -> value, from the run's own journal."""
        lines = (self.run_dir(name) / "metrics.jsonl").read_text().splitlines()
        return {entry["step"]: entry[key] for entry in map(json.loads, lines)}

    def damaged(self, name: str, every: int) -> str:
        """An override that chooses the same pictures, of which every `every`-th is missing or cut short."""
        folder = self.folder / name
        if not folder.exists():
            shutil.copytree(self.folder / "data", folder)
            for number, path in enumerate(sorted((folder / "imgs").iterdir())):
                if number % every == 0:
                    path.write_bytes(path.read_bytes()[:200]) if number % (2 * every) else path.unlink()
        return f"data.sources=[{folder / 'data.json'}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("train")
    write_dataset(folder / "data", PICTURES, SyntheticConfig(size=96), seed=4)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return Workplace(folder, (*write_mini(folder), f"run_root={folder / 'runs'}"))


# --- what the ranks do ---


def command(argv: list[str]) -> None:
    """The command as a shell would run it."""
    raise SystemExit(train.main(argv))


@dataclass(frozen=True)
class Watched:
    """changed: names of the parameters and buffers that the run has changed; all: of all that there are (none where it
    failed); rates: global batch and learning rate of each optimizer step."""

    exit_code: int
    changed: set[str]
    all: set[str]
    rates: list[tuple[int, float]]


def watched(argv: list[str], poisoned: tuple[int, ...] = ()) -> Watched:
    """The command, with a look at the weights before and after, and at the learning rate of each optimizer step.

    poisoned: global batches in which the last rank's loss has an infinite gradient.
    """
    seen: dict[str, Any] = {"rates": []}
    original_run = Trainer.run

    def run(trainer: Any) -> None:
        objective, engine, progress = trainer.objective, trainer.engine, trainer.progress
        original_loss, original_step = objective.loss, engine.step

        def loss(roles: Any, item: Any) -> Any:
            output = original_loss(roles, item)
            hit = progress.batches in poisoned and engine.world.rank == engine.world.size - 1
            return replace(output, loss=output.loss * float("inf")) if hit else output

        def step(rate: float, *rest: float) -> Any:
            result = original_step(rate, *rest)
            seen["rates"].append((progress.batches, rate))
            return result

        objective.loss, engine.step = loss, step
        before = {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}
        original_run(trainer)
        after = engine.module.state_dict()
        seen["changed"] = {name for name in before if not torch.equal(before[name], after[name])}
        seen["all"] = set(before)

    Trainer.run = run  # type: ignore[method-assign]  # this process is forked for one call
    exit_code = train.main(argv)
    return Watched(exit_code, seen.get("changed", set()), seen.get("all", set()), seen["rates"])


# --- the same run on any number of ranks ---


@pytest.fixture(scope="module")
def curves(place: Workplace) -> dict[int, list[RankResult]]:
    """20 updates at effective batch 48 on each world size."""
    changes = (f"train.max_steps={CURVE_STEPS}", "lora.dropout=0.1")  # dropout too is drawn by sample, not by rank
    argv = {world: place.argv(f"world{world}", *changes) for world in (1, 2, 3)}
    started = {world: start_ranks(world, command, argv[world]) for world in argv}
    return {world: started[world].wait() for world in started}


def test_the_loss_curve_does_not_depend_on_the_world_size(
    place: Workplace, curves: dict[int, list[RankResult]]
) -> None:
    for results in curves.values():
        returned(results)
    alone = place.metrics("world1")
    assert list(alone) == list(range(1, CURVE_STEPS + 1)) and len(set(alone.values())) == CURVE_STEPS
    for world in (2, 3):
        other = place.metrics(f"world{world}")
        assert list(other) == list(alone)
        largest = max(abs(other[step] / alone[step] - 1.0) for step in alone)
        print(f"loss over {CURVE_STEPS} updates, 1 rank against {world}: largest relative difference {largest:.1e}")
        assert largest < 1e-5
        norms = place.metrics("world1", "grad_norm"), place.metrics(f"world{world}", "grad_norm")
        assert list(norms[0].values()) == pytest.approx(list(norms[1].values()), rel=1e-3)


def test_the_adapters_of_all_world_sizes_agree(place: Workplace, curves: dict[int, list[RankResult]]) -> None:
    adapters = {world: read_adapter(find_checkpoint(place.run_dir(f"world{world}")))[0] for world in curves}
    for name, tensor in adapters[1].items():
        for world in (2, 3):
            assert (adapters[world][name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def test_each_run_says_what_it_is(place: Workplace, curves: dict[int, list[RankResult]]) -> None:
    sizes = {}
    for world, results in curves.items():
        facts = json.loads((place.run_dir(f"world{world}") / RUN_INFO).read_text())
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
        assert all(not r.stdout for r in results[1:]), told(results)  # only rank 0 talks
    print("optimizer bytes per rank:", sizes)


# --- what is trained ---


@pytest.fixture(scope="module")
def straight(place: Workplace) -> tuple[RankResult, Watched]:
    """Six updates without a break."""
    (result,) = run_ranks(1, watched, place.argv("straight", *SIX_UPDATES))
    return result, returned([result])[0]


def test_every_lora_tensor_changes_and_nothing_else(straight: tuple[RankResult, Watched]) -> None:
    _, seen = straight
    assert seen.exit_code == 0
    lora = {name for name in seen.all if ".lora_" in name}
    assert len(lora) > 50 and len(seen.all) > 3 * len(lora)
    assert seen.changed == lora


def test_an_unusual_batch_is_warned_of(straight: tuple[RankResult, Watched]) -> None:
    assert "warning: train.effective_batch=8 is outside 32-64" in straight[0].stdout


def test_the_rate_warms_up_update_by_update(place: Workplace, straight: tuple[RankResult, Watched]) -> None:
    assert straight[1].rates == [(batch, 2e-3 * min(1.0, (batch + 1) / 4)) for batch in range(6)]


# --- the end (tests/distill/training/test_resume.py stops runs and goes on with them) ---


def test_a_finished_run_stays_as_it_is(place: Workplace, straight: tuple[RankResult, Watched]) -> None:
    before = (place.run_dir("straight") / "metrics.jsonl").read_bytes()
    returned(run_ranks(1, command, place.argv("straight", *SIX_UPDATES)))
    assert (place.run_dir("straight") / "metrics.jsonl").read_bytes() == before


# --- a teacher instead of a student ---


def test_trained_weights_are_written_and_lie_over_others(place: Workplace) -> None:
    recipe = place.folder / "teacher.yaml"
    recipe.write_text(RECIPE.replace(OBJECTIVE, "{name: denoise, scope: official}"))
    argv = [*place.argv("teacher", *SMALL_BATCH, "train.max_steps=1"), "--config", str(recipe)]
    (seen,) = returned(run_ranks(1, watched, argv))
    changed = {name.removeprefix("net.") for name in seen.changed}
    assert any(name.startswith("control_model.") for name in changed)
    assert not any(name.startswith(("first_stage_model.", "text_predictor.", "cond_stage_model.")) for name in changed)
    section = load_recipe(recipe, [change for change in place.changes if change.startswith("model.")]).model
    before = make_model(section, 0).state_dict()
    after = make_model(replace(section, parts=[str(place.run_dir("teacher"))]), 0).state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed


# --- fp16 ---


@pytest.mark.parametrize("world", [1, 2])
def test_an_overflow_advances_neither_schedule_nor_counter(place: Workplace, world: int) -> None:
    name = f"fp16-{world}"
    batch = ["train.effective_batch=4", "train.micro_batch=2"]
    argv = place.argv(name, *batch, "train.max_steps=4", "train.fp16_on_cpu=true", "train.ema_decay=0.5")
    results = run_ranks(world, watched, argv, POISONED)
    for seen in returned(results):
        assert seen.exit_code == 0
        # Batches 2 and 3 overflow: the rate of the third update, 3/4 of the full one, is tried three times.
        assert seen.rates == [(b, 2e-3 * min(1.0, (u + 1) / 4)) for b, u in enumerate([0, 1, 2, 2, 2, 3])]
        assert {n for n in seen.changed if ".lora_" not in n} == set()
    assert "DeepSpeed ZeRO-2: fp16" in results[0].stdout
    scales = place.metrics(name, "loss_scale")
    assert list(scales) == [1, 2, 3, 4] and scales[3] == scales[2] / 2 == 2.0**15
    assert list(place.metrics(name, "skipped_updates").values()) == [0, 0, 2, 2]
    state = read_trainer_state(find_checkpoint(place.run_dir(name)))
    assert (state.step, state.batches, state.skipped_steps) == (4, 6, 2)
    assert state.loss_scaler["cur_scale"] == 2.0**15


def test_in_fp32_a_gradient_that_is_not_finite_ends_the_run(place: Workplace) -> None:
    argv = place.argv("nan", *SMALL_BATCH, "train.max_steps=4")
    (result,) = run_ranks(1, watched, argv, POISONED)
    assert returned([result])[0].exit_code == 1, told([result])
    assert "error: update 3: the gradient is not finite in fp32; last samples of this rank: " in result.stderr
    assert not any(place.run_dir("nan").glob("checkpoint-*"))


# --- the launcher ---


def test_the_launcher_runs_one_rank_on_a_machine_without_gpu(place: Workplace) -> None:
    argv = place.argv("launched", *SMALL_BATCH, "train.max_steps=2", "tracking.enabled=true", "log.preview_every=2")
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port()), "launch/train.py"]
    environment = os.environ | CPU_ONLY | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([*launcher, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "No GPU here: zero2.json (fp16) falls back to zero2_cpu.json (fp32), 1 rank on the CPU" in done.stdout
    run_dir = place.run_dir("launched")
    assert (run_dir / "audit.png").stat().st_size > 1000 and list((run_dir / "previews").glob("*.png"))
    store = sqlite3.connect(run_dir.parent / "mlflow.db")
    parameters = dict(store.execute("select key, value from params"))
    assert parameters["recipe.train.effective_batch"] == "8" and parameters["run.ranks"] == "1"
    assert parameters["recipe.objective.w_max"] == "4.0" and parameters["deepspeed.zero_optimization.stage"] == "2"
    logged = {key for (key,) in store.execute("select distinct key from metrics")}
    assert {"loss", "learning_rate", "loss_scale", "grad_norm", "samples_per_second"} <= logged
    assert [status for (status,) in store.execute("select status from runs")] == ["FINISHED"]
    store.close()


# --- pictures that cannot be read ---


def test_a_few_unreadable_pictures_are_passed_over_counted_and_reported(place: Workplace) -> None:
    """Every tenth of 60 is broken; 80 samples are one whole epoch and a part of the next."""
    argv = place.argv("patchy", "train.max_steps=2", "train.effective_batch=40", "data.max_unreadable=0.5")
    (result,) = run_ranks(1, command, [*argv, place.damaged("patchy_data", 10), "data.workers=1"])
    returned([result])
    lines = [line for line in result.stdout.splitlines() if "could not be read and were replaced" in line]
    assert lines and lines[-1].startswith("data: ") and " of 80 samples" in lines[-1], told([result])
    counted = read_trainer_state(find_checkpoint(place.run_dir("patchy"))).extra["unreadable"]
    assert len(counted) == 2 and sum(counted.values()) >= 6  # missing ones, and broken ones
    assert f"data: {sum(counted.values())} of 80 samples" in lines[-1]


def test_too_many_unreadable_pictures_stop_all_ranks_with_one_line(place: Workplace) -> None:
    argv = place.argv("holes", "train.max_steps=9", "train.effective_batch=48", "train.micro_batch=8")
    results = run_ranks(2, command, [*argv, place.damaged("holes_data", 3)])
    assert_one_error(results, "data.sources: ", "of 48 samples could not be read", "data.max_unreadable=0.05")


def test_a_data_root_that_is_elsewhere_is_one_line_even_from_a_worker(place: Workplace) -> None:
    argv = place.argv("nothing", *SMALL_BATCH, place.damaged("nothing_data", 1), "data.workers=1")
    assert_one_error(run_ranks(1, command, argv), "data.sources: neither item ", "data_root")


# --- mistakes ---


def assert_one_error(results: list[RankResult], *words: str) -> None:
    assert [r.exit_code for r in results] == [2] * len(results), told(results)
    errors = [line for r in results for line in r.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), told(results)
    assert not any("Traceback" in r.stderr for r in results), told(results)


def test_mistakes_in_the_recipe_are_one_line(place: Workplace) -> None:
    assert_one_error(run_ranks(1, command, [*place.argv("e"), "--config", "no.yaml"]), "no.yaml: no such file")
    results = run_ranks(3, command, place.argv("e", "train.stepz=1"))
    assert_one_error(results, "train.stepz", "known there: max_steps")
    results = run_ranks(1, command, place.argv("e", "train.micro_batch=5"))
    assert_one_error(results, "train.effective_batch=48", "micro_batch=5", "may be 1, 2, 3, 4, 6, 8")
    assert not place.run_dir("e").exists()


def test_mistakes_in_the_files_are_one_line(place: Workplace) -> None:
    broken = place.folder / "broken.json"
    broken.write_text('{"data_list": [')
    assert_one_error(run_ranks(1, command, place.argv("f", f"data.sources=[{broken}]")), "broken.json: not JSON")
    broken.write_text('{"data_root": "", "data_list": [{"caption": "x"}]}')
    results = run_ranks(2, command, place.argv("f", f"data.sources=[{broken}]"))
    assert_one_error(results, "broken.json: data_list[0].img_name: missing")
    missing = place.folder / "nowhere.ckpt"
    results = run_ranks(1, command, place.argv("f", f"model.weights={missing}"))
    assert_one_error(results, f"{missing}: no such weights file")
    results = run_ranks(1, command, [*place.argv("f"), "--deepspeed", str(broken)])
    assert_one_error(results, f"--deepspeed {broken}: zero_optimization.stage=None")


def test_a_checkpoint_of_another_run_is_not_resumed(place: Workplace, straight: tuple[RankResult, Watched]) -> None:
    folder = place.run_dir("straight") / "checkpoint-6"
    results = run_ranks(1, command, place.argv("g", f"checkpoint.resume={folder}", *SMALL_BATCH, "seed=5"))
    assert_one_error(results, str(folder), "seed=0", "5")
    results = run_ranks(1, command, place.argv("g", f"checkpoint.resume={folder}", *SMALL_BATCH, "lora.rank=3"))
    assert_one_error(results, "optimizer.safetensors", "shape", "rank")
    results = run_ranks(1, command, place.argv("straight", "checkpoint.resume=never"))
    assert_one_error(results, str(place.run_dir("straight")), "checkpoint.resume=never")
