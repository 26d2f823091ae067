"""Trainings on GPUs: the production launcher over NCCL, an overflow of fp16, checkpoint and resume."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.checkpoint.formats import read_trainer_state
from distill.checkpoint.store import find_checkpoint
from distill.tracking.metric_names import LOSS, read_metrics
from tests.helpers.paths import ROOT
from tests.helpers.processes.ports import free_port
from tests.helpers.processes.ranks import CPU_ONLY
from tests.helpers.processes.training_runs import TrainingFolder, last_tensors

pytestmark = [pytest.mark.gpu, pytest.mark.process]

SECONDS = 150


def run_python(device: torch.device, *words: str) -> str:
    """Runs python with these arguments, and returns what it printed. The repository need not be installed."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    environment |= CPU_ONLY if device.type == "cpu" else {}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *words], env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        printed: str = process.communicate(timeout=SECONDS)[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher's ranks too
        raise
    assert process.returncode == 0, printed[-5000:]
    return printed


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_launcher_trains_the_demo_under_zero2(device: torch.device, tmp_path: Path, ranks: int) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(free_port())]
    command = [str(ROOT / "launch/train.py"), "--deepspeed", str(ROOT / "ds_configs/zero2.json")]
    short = ["train.max_steps=2", "train.effective_batch=8", "train.micro_batch=4", "data.synthetic.count=16"]
    quiet = ["log.every=1", "log.preview_every=0", "tracking.enabled=false", f"run_root={tmp_path}"]
    printed = run_python(device, *launcher, *command, *short, *quiet)
    assert ("DeepSpeed ZeRO-2: fp16, " if device.type == "cuda" else f", {ranks} rank") in printed
    lines = list(read_metrics(tmp_path / "demo"))
    losses = [line[LOSS] for line in lines if LOSS in line]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert [line["health/skipped_updates"] for line in lines if "health/skipped_updates" in line] == [0.0, 0.0]


LAST, OVERFLOW = 4, 1
SETTINGS = [
    *("train.effective_batch=4", "train.micro_batch=2", f"train.max_steps={LAST}", "train.fp16_on_cpu=true"),
    *("checkpoint.save_steps=2", "data.part=all", "log.every=1"),
]


def test_an_overflow_skips_one_update_and_a_run_resumes_exactly(device: torch.device, tmp_path: Path) -> None:
    """One process for the whole run, one that goes on from its checkpoint after update 2."""
    runs = TrainingFolder.create(tmp_path, 16)
    config = json.loads((ROOT / "ds_configs/zero2.json").read_text())
    config["fp16"] |= {"hysteresis": 1}  # the first overflow already halves the scale
    (tmp_path / "zero2.json").write_text(json.dumps(config))

    def train(name: str) -> None:
        argv = ["--deepspeed", str(tmp_path / "zero2.json"), *runs.argv(name, *SETTINGS)[2:]]
        module = "tests.helpers.processes.deterministic_training"
        run_python(device, "-m", module, str(OVERFLOW), *argv)

    train("whole")
    state = read_trainer_state(find_checkpoint(runs.run_dir("whole")))
    assert (state.step, state.batches, state.skipped_steps) == (LAST, LAST + 1, 1)
    assert state.loss_scaler["cur_scale"] == 2.0 ** (config["fp16"]["initial_scale_power"] - 1)
    assert all(math.isfinite(loss) for loss in runs.metrics("whole").values())
    shutil.copytree(runs.run_dir("whole"), runs.run_dir("resumed"))
    shutil.rmtree(runs.run_dir("resumed") / f"checkpoint-{LAST}")
    train("resumed")
    whole, resumed = (last_tensors(runs.run_dir(name), LAST) for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    unequal = [key for key in whole if not torch.equal(whole[key], resumed[key])]
    assert not unequal, unequal[:5]
    assert read_trainer_state(find_checkpoint(runs.run_dir("resumed"))).loss_scaler == state.loss_scaler
