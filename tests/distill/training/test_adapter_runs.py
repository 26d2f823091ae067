"""A DoRA that Prodigy trains: the whole command in fp16 on real ranks, stopped, resumed, sampled; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.checkpoint.formats import read_adapter, read_trainer_state
from distill.checkpoint.store import find_checkpoint
from distill.inference.loading import load_sampling_model
from tests.helpers.processes.ranks import returned, run_ranks
from tests.helpers.processes.train_patches import train_with_overflows
from tests.helpers.processes.training_runs import TrainingFolder, assert_one_error, last_tensors, train_command

pytestmark = pytest.mark.process

LAST, STOP, POISONED = 4, 2, (1,)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    runs = TrainingFolder.create(tmp_path_factory.mktemp("adapters"), 20)
    targets = "# of the decoder\nmodel.diffusion_model.output_blocks.0\nzero_convs\n"
    (runs.folder / "targets.txt").write_text(targets)
    return runs


def settings(runs: TrainingFolder) -> list[str]:
    return [
        *("train.effective_batch=6", "train.micro_batch=3", f"train.max_steps={LAST}", "train.ema_decay=0.5"),
        *("data.part=all", "checkpoint.save_steps=0", "train.fp16_on_cpu=true"),
        *("lora.kind=dora", f"lora.targets={runs.folder / 'targets.txt'}", "lora.dropout=0.1"),
        *("train.optimizer=prodigy", "train.learning_rate=1.0", "train.warmup_steps=0"),
    ]


def finished(runs: TrainingFolder, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Adapter and optimizer file of the last checkpoint, flat; and the counters."""
    run_dir = runs.run_dir(name)
    return last_tensors(run_dir, LAST), vars(read_trainer_state(find_checkpoint(run_dir)))


@pytest.fixture(scope="module")
def trained(runs: TrainingFolder) -> TrainingFolder:
    for name, stop in (("whole", 0), ("stopped", STOP)):
        returned(run_ranks(2, train_with_overflows, runs.argv(name, *settings(runs)), POISONED, stop))
    return runs


def test_a_run_with_dora_and_prodigy_goes_on_exactly(trained: TrainingFolder) -> None:
    shutil.copytree(trained.run_dir("stopped"), trained.run_dir("resumed"))
    returned(run_ranks(2, train_with_overflows, trained.argv("resumed", *settings(trained)), POISONED, 0))
    (ours, counted), (theirs, wanted) = finished(trained, "resumed"), finished(trained, "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {k: counted[k] for k in ("step", "batches", "skipped_steps", "loss_scaler")} == {
        k: wanted[k] for k in ("step", "batches", "skipped_steps", "loss_scaler")
    }
    assert counted["skipped_steps"] == len(POISONED) and trained.metrics("resumed", "train/optimizer_d")[LAST] >= 1e-6
    lengths = [key for key in theirs if key.startswith("master/") and key.endswith(".lora_magnitude_vector")]
    matrices = [key for key in theirs if key.startswith("master/") and ".lora_A." in key]
    assert len(lengths) == len(matrices) > 10
    assert all(not torch.equal(theirs[key], theirs[key.replace("master/", "p0/")]) for key in lengths)


def test_its_checkpoint_is_a_student_to_sample(trained: TrainingFolder) -> None:
    opened = load_sampling_model(trained.run_dir("whole"), None, (), "fp32", "cpu")
    adapter, _ = read_adapter(find_checkpoint(trained.run_dir("whole")))
    held = {n: p for n, p in opened.roles.wrapped.named_parameters() if ".lora_magnitude_vector." in n}
    saved = {n: t for n, t in adapter.items() if n.endswith(".lora_magnitude_vector")}
    assert opened.has_student and len(held) == len(saved) > 10
    for name, value in saved.items():
        assert torch.equal(held[f"base_model.model.{name}.student.weight"], value)


def test_another_adapter_or_optimizer_cannot_go_on(trained: TrainingFolder) -> None:
    folder = f"checkpoint.resume={find_checkpoint(trained.run_dir('whole'))}"
    others = {
        "train.optimizer=adamw": ["another train.optimizer than adamw", "d_numerator", "resume_optimizer=false"],
        "lora.alpha=8": ["lora_alpha=4, the recipe has lora.alpha=8"],
    }
    for change, words in others.items():
        argv = trained.argv("other", *settings(trained), folder, change)
        assert_one_error(run_ranks(1, train_command, argv), *words)


def test_what_cannot_be_trained_is_refused_before_weights_are_read(runs: TrainingFolder, tmp_path: Path) -> None:
    missing = f"model.weights={tmp_path / 'nowhere.ckpt'}"  # would be an error of its own
    others = {
        "train.optimizer=adamw8bit": ["train.optimizer='adamw8bit': one of adamw, prodigy", "54 MB"],
        "lora.targets=nowhere": ["lora.targets='nowhere' is no preset (paper, decoder, all)"],
        f"lora.targets={tmp_path / 'none.txt'}": ["none.txt: No such file"],
    }
    for change, words in others.items():
        results = run_ranks(2, train_command, runs.argv("refused", missing, change))
        assert_one_error(results, *words)
        assert not runs.run_dir("refused").exists()
