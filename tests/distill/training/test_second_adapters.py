"""Runs with a second adapter on the base, the fake score or the target's average: stopped, resumed, what they leave."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from anytext2.model.anytext2 import build_model
from distill.adapters.lora import AdapterConfig, adapter_parameters, add_adapter, add_student
from distill.adapters.roles import FAKE_SCORE
from distill.checkpoint.formats import read_adapter
from distill.checkpoint.store import find_checkpoint
from tests.helpers.models.mini_model import mini_config
from tests.helpers.processes.ranks import returned, run_ranks
from tests.helpers.processes.train_patches import train_with_overflows
from tests.helpers.processes.training_runs import TrainingFolder, assert_one_error, last_tensors, train_command

pytestmark = pytest.mark.process

LAST, STOP = 5, 3
VARIANTS = {
    "fake": [
        "objective={name: distribution_matching, w_min: 2, w_max: 2, fake_updates: 1, solver_steps: 10, steps: 2}"
    ],
    "average": ["objective={name: phased, w_min: 2, w_max: 4, target_ema: true}", "train.ema_decay=0.5"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    return TrainingFolder.create(tmp_path_factory.mktemp("second"), 20)


def settings(kind: str) -> list[str]:
    return [
        *("train.effective_batch=4", "train.micro_batch=2", f"train.max_steps={LAST}", "data.part=all"),
        *("checkpoint.save_steps=0", "lora.dropout=0.1", *VARIANTS[kind]),
    ]


@pytest.mark.parametrize("kind", VARIANTS)
def test_it_goes_on_exactly_and_hands_over_the_student_alone(runs: TrainingFolder, kind: str) -> None:
    for name, stop in (("whole", 0), ("stopped", STOP)):
        returned(run_ranks(2, train_with_overflows, runs.argv(f"{kind}_{name}", *settings(kind)), (), stop))
    shutil.copytree(runs.run_dir(f"{kind}_stopped"), runs.run_dir(f"{kind}_resumed"))
    returned(run_ranks(2, train_with_overflows, runs.argv(f"{kind}_resumed", *settings(kind)), (), 0))
    ours, theirs = (last_tensors(runs.run_dir(f"{kind}_{name}"), LAST) for name in ("resumed", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    adapter = read_adapter(find_checkpoint(runs.run_dir(f"{kind}_whole")))[0]
    assert len(adapter) > 20 and not any(":" in name or "average" in name for name in adapter)
    trained = {key.removeprefix("master/") for key in theirs if key.startswith("master/")}
    assert trained == set(adapter) | ({f"fake:{name}" for name in adapter} if kind == "fake" else set())
    losses = runs.metrics(f"{kind}_whole")
    assert sorted(losses) == list(range(1, LAST + 1))


def test_both_losses_have_curves_of_their_own(runs: TrainingFolder) -> None:
    """fake_updates: 1, so that the updates take turns; every update is a line of the journal."""
    name = "fake_curves"
    returned(run_ranks(1, train_with_overflows, runs.argv(name, *settings("fake")), (), 0))
    text = (runs.run_dir(name) / "metrics.jsonl").read_text().splitlines()
    found = [{key for key in ("loss_fake", "loss_student") if f'"train/{key}"' in line} for line in text]
    assert found == [{"loss_fake"}, {"loss_student"}] * 2 + [{"loss_fake"}]


def test_pairs_that_do_not_fit_are_refused_before_weights_are_read(runs: TrainingFolder, tmp_path: Path) -> None:
    missing = f"model.weights={tmp_path / 'nowhere.ckpt'}"  # would be an error of its own
    others = [
        (["objective.target_ema=true"], ["objective.target_ema=true", "train.ema_decay"]),
        ([*VARIANTS["fake"], "train.optimizer=prodigy", "train.learning_rate=1.0"], ["prodigy", "two adapters"]),
        (
            ["objective={name: phased, phases: 4}", "eval.every=5", "eval.steps=3"],
            ["eval.steps=3", "4 phases", "1, 2, 4, 8"],
        ),
        (
            ["objective={name: phased}", "log.preview_every=5", "log.preview_steps=80"],
            ["log.preview_steps=80", "10 times"],
        ),
        (
            [*VARIANTS["fake"], "model.activation_checkpointing=selective"],
            ["model.activation_checkpointing=selective", "two adapters"],
        ),
        (
            ["model.fault_injection=writenet_sees_noise", "objective.terms.attention_mass.weight=1"],
            ["objective.terms.attention_mass", "writenet_sees_noise"],
        ),
        ([*VARIANTS["fake"], "eval.every=1", "eval.steps=3"], ["eval.steps=3", "2 phases"]),
        (["objective.grid=coarse"], ["solver_steps = 10", "coarse grids have 4, 6, 8, 16"]),
        (["objective.terms.spelling.weight=1"], ["objective.terms.spelling", "focal_frequency"]),
        (["objective.name=nope"], ["objective.name='nope'", "distribution_matching"]),
    ]
    for changes, words in others:
        assert_one_error(run_ranks(1, train_command, runs.argv("refused", missing, *changes)), *words)
        assert not runs.run_dir("refused").exists() or not list(runs.run_dir("refused").glob("checkpoint*"))


def test_the_fake_scores_first_weights_are_the_seeds_alone() -> None:
    def fresh(seed: int, disturbed: bool) -> list[torch.Tensor]:
        torch.manual_seed(5)
        if disturbed:
            torch.rand(3)
        student = add_student(build_model(mini_config()), AdapterConfig(rank=2, alpha=2), 0)
        before = torch.random.get_rng_state()
        add_adapter(student, FAKE_SCORE, trained=True, seed=seed)
        assert torch.equal(before, torch.random.get_rng_state())
        return [p.detach() for n, p in adapter_parameters(student, FAKE_SCORE) if ".lora_A." in n]

    one, same, other = fresh(1, False), fresh(1, True), fresh(2, False)
    assert all(map(torch.equal, one, same)) and not any(map(torch.equal, one, other))
