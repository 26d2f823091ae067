"""launch/train.py itself on a real SLURM: stopped before its limit and gone on, and over three nodes.

The two runs are the same recipe on two ranks of one node and on three nodes with a rank each, so they are compared too.
"""

from __future__ import annotations

import sqlite3
from collections import Counter

import pytest

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.tracking.metric_names import LOSS, read_metrics
from tests.helpers.models.mini_model import write_mini
from tests.helpers.processes.slurm_jobs import Place, ended, hurried, slurm, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
STEPS = 60
RECIPE = f"""
name: curve
data:
  workers: 0
  options: {{resolution: 64, max_lines: 1}}
objective: {{name: consistency, w_min: 2.0, w_max: 4.0, solver_steps: 10, teacher_interval: 100}}
lora: {{rank: 2, alpha: 4}}
train: {{max_steps: {STEPS}, effective_batch: 12, micro_batch: 2, learning_rate: 2.0e-3, warmup_steps: 4, threads: 1}}
checkpoint: {{save_steps: 1000}}
log: {{every: 1}}
"""
CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Place, str]]:
    """`stopped`: one node, deepspeed, two ranks. `nodes`: srun, a rank on each of three nodes."""
    folder = tmp_path_factory.mktemp("training")
    write_dataset(folder / "data", 24, SyntheticConfig(size=96), seed=4)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    own = [*write_mini(folder), f"data.sources=[{folder / 'data' / 'data.json'}]"]
    layouts = {"stopped": ["--gpus", "2"], "nodes": ["--nodes", "3", "--gpus", "1"]}
    places = {name: Place(folder / name, None) for name in layouts}
    for place in places.values():
        place.folder.mkdir()
    return {name: (places[name], places[name].submit(recipe, *layouts[name], *own, **CPU)) for name in layouts}


def losses(place: Place) -> list[tuple[int, float]]:
    """(step, loss) of every line of the run's journal, in the order of writing."""
    records = read_metrics(place.folder / "runs" / "curve")
    return [(record["step"], record[LOSS]) for record in records if LOSS in record]


def sent(place: Place) -> tuple[list[str], Counter[int]]:
    """The states of MLflow's runs, and how often it has the loss of each step."""
    store = sqlite3.connect(place.folder / "runs" / "mlflow.db")
    states = [state for (state,) in store.execute("select status from runs")]
    steps = Counter(step for (step,) in store.execute("select step from metrics where key = ?", (LOSS,)))
    store.close()
    return states, steps


def test_a_run_that_is_told_to_stop_goes_on_after_its_requeue_as_if_it_had_not(
    jobs: dict[str, tuple[Place, str]],
) -> None:
    """The warning is sent by hand, as SLURM sends it before the time limit: a checkpoint, exit code 75, the queue, and
    the same MLflow run with every step once."""
    place, number = jobs["stopped"]
    wait_for(lambda: len(losses(place)) >= 3, "three updates", 300)
    slurm("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: hurried(number)["Restarts"] == "1", "the requeue", 120)
    written = place.folder / "runs" / "curve"
    (checkpoint,) = written.glob("checkpoint-*")
    stopped_at = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 3 <= stopped_at < STEPS and [step for step, _ in losses(place)] == list(range(1, stopped_at + 1))
    fields = ended(number, 600)
    log = place.log("curve", number)
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert "queueing it again (restart 1 of at most 20)" in log and f"at update {stopped_at}" in log
    states, steps = sent(place)
    assert states == ["FINISHED"] and steps == Counter(range(1, STEPS + 1))


def test_a_run_over_three_nodes_finishes(jobs: dict[str, tuple[Place, str]]) -> None:
    place, number = jobs["nodes"]
    fields = ended(number, 600)
    log = place.log("curve", number)
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert "3 ranks on the CPU" in log and "effective batch 12 = 2 x 2 x 3" in log
    assert [step for step, _ in losses(place)] == list(range(1, STEPS + 1))


def test_both_have_the_same_loss_curve(jobs: dict[str, tuple[Place, str]]) -> None:
    one, three = (dict(losses(jobs[name][0])) for name in ("stopped", "nodes"))
    assert list(one) == list(three) == list(range(1, STEPS + 1))
    assert list(one.values()) == pytest.approx(list(three.values()), rel=1e-4)
