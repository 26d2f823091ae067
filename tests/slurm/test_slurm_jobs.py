"""The job scripts on a real SLURM of three nodes, around a stand-in for the trainer.

All jobs are submitted at once, and wait and run beside each other; each test then looks at its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.processes.slurm_jobs import HERE, ROOT, Place, ended, hurried, job, slurm, stand_in_place, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
DEMO = ROOT / "launch" / "recipes" / "demo.yaml"
SWEEP = "train.learning_rate=1e-4\n\n# a comment\ntrain.learning_rate=2e-4 name=chosen\ntrain.learning_rate=3e-4\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return stand_in_place(tmp_path_factory.mktemp("jobs") / "place")


@pytest.fixture(scope="module")
def jobs(place: Place) -> dict[str, str]:
    """Name -> number of every job; the order is the queue's."""
    sweep = place.folder / "sweep.txt"
    sweep.write_text(SWEEP)

    def one(name: str, *words: str, **environment: str) -> str:
        steps = () if any("train.max_steps" in word for word in words) else ("train.max_steps=5",)
        return place.submit(DEMO, "--gpus", "1", *words, f"name={name}", *steps, **environment)

    warned = ("--time", "3", "--signal-lead", "100")  # the warning comes 20 to 80 seconds after the start
    return {
        "time_limit": one("time_limit", *warned, "train.max_steps=500"),
        "array": place.submit(DEMO, "--gpus", "1", "--array", str(sweep), "train.max_steps=5"),
        "plain": one("plain", "--gpus", "2"),
        "failing": one("failing", STAND_IN_CODE="1"),
        "mistaken": one("mistaken", STAND_IN_CODE="2"),
        "again": one("again", "--max-requeues", "1", STAND_IN_CODE="75"),
        "never": one("never", "--max-requeues", "0", STAND_IN_CODE="75"),
        "single1": one("single", "--singleton", "train.max_steps=15"),
        "single2": one("single", "--singleton", "train.max_steps=25"),
        "later": one("later", "--begin", "now+15"),
        "scheduled": one("scheduled", "--every", "20"),
        "cancelled": one("cancelled", "train.max_steps=5000"),
        "killed": one("killed", "train.max_steps=5000"),
        "many": one("many", "--nodes", "3", "--gpus", "1", "train.max_steps=50000"),
    }


def test_a_finished_run_is_a_completed_job(place: Place, jobs: dict[str, str]) -> None:
    fields = ended(jobs["plain"])
    log = place.log("plain", jobs["plain"])
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert "the run ended with exit code 0" in log
    (start,) = place.events("plain", "start")
    words = start["argv"]
    assert words[:3] == [
        "--master_port",
        str(20000 + 7 * int(jobs["plain"]) % 12000),
        "launch/train.py",
    ]  # GPUs by name
    assert words[words.index("--config") + 1] == str(DEMO) and "train.max_steps=5" in words


@pytest.mark.parametrize(("name", "code"), [("failing", 1), ("mistaken", 2), ("never", 75)])
def test_any_other_end_is_a_failed_job_that_is_not_queued_again(
    place: Place, jobs: dict[str, str], name: str, code: int
) -> None:
    fields = ended(jobs[name])
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", f"{code}:0", "0")
    assert len(place.events(name, "start")) == 1
    assert ("ANYTEXT2_MAX_REQUEUES=0" in place.log(name, jobs[name])) == (name == "never")


def test_a_run_that_always_stops_is_queued_again_only_so_often(place: Place, jobs: dict[str, str]) -> None:
    fields = ended(jobs["again"])
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "75:0", "1")
    assert [event["restarts"] for event in place.events("again", "start")] == ["0", "1"]
    log = place.log("again", jobs["again"])
    assert "queueing it again (restart 1 of at most 1)" in log and "not queued again: 1 restarts" in log


def test_each_line_of_a_sweep_is_a_run_of_its_own(place: Place, jobs: dict[str, str]) -> None:
    for number, name, rate in ((1, "demo-1", "1e-4"), (4, "chosen", "2e-4"), (5, "demo-5", "3e-4")):
        assert ended(f"{jobs['array']}_{number}")["JobState"] == "COMPLETED"
        (start,) = place.events(name, "start")
        assert f"train.learning_rate={rate}" in start["argv"] and "train.max_steps=5" in start["argv"]
        assert "exit code 0" in place.log("demo", f"{jobs['array']}_{number}")
    assert not place.events("demo-2") and not place.events("demo-3")


def test_jobs_of_one_run_come_one_after_the_other(place: Place, jobs: dict[str, str]) -> None:
    for name in ("single1", "single2"):
        assert ended(jobs[name])["JobState"] == "COMPLETED"
    events = place.events("single")
    assert [(event["what"], event["job"]) for event in events] == [
        (what, jobs[name]) for name in ("single1", "single2") for what in ("start", "end")
    ]


def test_a_scheduled_start_waits_for_its_time(place: Place, jobs: dict[str, str]) -> None:
    fields = ended(jobs["later"])
    (start,) = place.events("later", "start")
    assert start["time"] >= datetime.fromisoformat(fields["SubmitTime"]).timestamp() + 15
    assert fields["JobState"] == "COMPLETED"


def test_a_schedule_queues_its_next_job_at_the_start_of_each(place: Place, jobs: dict[str, str]) -> None:
    ended(jobs["scheduled"])
    following = place.log("scheduled", jobs["scheduled"]).split("next start in 20: job ")[1].split()[0]
    second = ended(following)
    slurm("scancel", "--name=scheduled")  # the third, which would go on for ever
    assert second["JobState"] == "COMPLETED"
    first, after = place.events("scheduled", "start")[:2]
    assert (first["job"], after["job"]) == (jobs["scheduled"], following) and first["argv"][2:] == after["argv"][2:]
    assert after["time"] - first["time"] >= 19


def test_a_cancelled_job_ends_and_stays_away(place: Place, jobs: dict[str, str]) -> None:
    wait_for(lambda: place.events("cancelled", "start"), "the start of the job to cancel")
    slurm("scancel", jobs["cancelled"])
    fields = ended(jobs["cancelled"])
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    wait_for(lambda: not running("name=cancelled"), "the end of the cancelled job's processes", 30)


def test_a_launcher_that_was_killed_is_a_failed_job_without_leftovers(place: Place, jobs: dict[str, str]) -> None:
    wait_for(lambda: place.events("killed", "start"), "the start of the job whose launcher is killed")
    (launcher,) = [p for p in running("name=killed") if "bin/deepspeed" in " ".join(p.cmdline()[:2])]
    launcher.kill()
    fields = ended(jobs["killed"])
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "137:0")
    assert "before its ranks" in place.log("killed", jobs["killed"]) and not running("name=killed")


def test_a_signal_reaches_all_tasks_of_a_run_over_three_nodes(place: Place, jobs: dict[str, str]) -> None:
    """By hand, as the time limit would send it: the job is queued again, and goes on where its tasks stopped."""
    wait_for(lambda: len(place.events("many", "start")) == 3, "three tasks")
    slurm("scancel", "--batch", "--signal=USR1", jobs["many"])
    stops = wait_for(lambda: len(found := place.events("many", "stop")) == 3 and found, "three tasks to stop")
    assert [stop["signals"] for stop in stops] == [[10]] * 3
    wait_for(lambda: job(jobs["many"])["Restarts"] == "1", "the requeue")
    assert "queueing it again (restart 1 of at most 20)" in place.log("many", jobs["many"])
    slurm("scancel", jobs["many"])


def test_a_lost_node_gives_its_job_to_another(place: Place) -> None:
    # All GPUs of a node, so that no other test's job is lost with it; and none of theirs has to wait for it.
    lost = place.submit(DEMO, "--gpus", "3", "name=lost_node", "train.max_steps=50000")
    wait_for(lambda: place.events("lost_node", "start"), "the start of the job that loses its node")
    node = job(lost)["BatchHost"]
    cluster = Path(os.environ["SLURM_TEST_CLUSTER"])
    try:
        kill_node(cluster, node, lost)
        wait_for(lambda: hurried(lost)["Restarts"] == "1", "the requeue after the loss of a node", 120)
        wait_for(lambda: hurried(lost) and place.events("lost_node", "start")[1:], "a second start")
        assert job(lost)["BatchHost"] != node
    finally:
        slurm("scancel", lost)
        subprocess.run([ROOT / "tests/slurm/cluster.sh", "start-node", cluster, node[-1]], check=True)
    assert [event["restarts"] for event in place.events("lost_node", "start")] == ["0", "1"]
    wait_for(lambda: "down" not in slurm("sinfo", "-hNn", node, "-o%T"), "the node again", 60)


def kill_node(cluster: Path, node: str, number: str) -> None:
    """What a power cut does to a node: its daemon and everything of its jobs end without a word."""
    daemon = psutil.Process(int((cluster / f"slurmd-{node}.pid").read_text()))
    doomed = running(f"[{number}.batch]")  # slurmstepd's title
    assert doomed
    doomed += [child for step in doomed[:] for child in step.children(recursive=True)]
    for process in (daemon, *doomed):
        process.kill()


def test_the_time_limit_is_met_with_a_checkpoint_and_a_second_start(place: Place, jobs: dict[str, str]) -> None:
    fields = ended(jobs["time_limit"], 300)
    log = place.log("time_limit", jobs["time_limit"])
    assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), log
    assert int(fields["Restarts"]) >= 1
    assert (
        "USR1: asking the run to stop with a checkpoint" in log and "queueing it again (restart 1 of at most 20)" in log
    )
    stops = place.events("time_limit", "stop")
    assert stops and all(stop["signals"] == [10] for stop in stops)
    assert json.loads((place.folder / "runs" / "time_limit" / "state.json").read_text()) == 500


def running(word: str) -> list[psutil.Process]:
    """Processes of a job whose command line holds `word`."""
    found = []
    for process in psutil.process_iter():
        try:
            if word in " ".join(process.cmdline()).split():
                found.append(process)
        except psutil.Error:  # ended meanwhile
            continue
    return found


# --- ranks that meet ---


def meeting(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_srun_over_three_nodes_makes_one_world(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "meet.py"), str(tmp_path / "met.json")]
    srun = ["srun", "--nodes=3", "--ntasks-per-node=2", "--time=5", *command]
    subprocess.run(srun, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=240, check=True)
    met = meeting(tmp_path / "met.json")
    assert met["total"] == 21.0 and met["address"] == "node1"
    assert met["ranks"] == [[rank, rank % 2, 2, f"node{1 + rank // 2}"] for rank in range(6)]


def test_the_deepspeed_launcher_for_slurm_makes_one_world(tmp_path: Path) -> None:
    """As docs/SLURM.md has it: in an allocation, with a hostfile of its nodes."""
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"node{n} slots=1\n" for n in (1, 2, 3)))
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--launcher", "slurm", "--hostfile", str(hosts)]
    words = ["--no_ssh_check", "--master_addr", "node1", str(HERE / "meet.py"), str(tmp_path / "met.json")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["salloc", "--nodes=3", "--ntasks-per-node=1", "--time=5", *deepspeed, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "PATH": path},
        timeout=240,
        check=True,
        cwd=ROOT,
    )
    met = meeting(tmp_path / "met.json")
    assert met["total"] == 6.0 and [rank[0] for rank in met["ranks"]] == [0, 1, 2]
