"""From environment variables to rank, world and meeting point."""

from __future__ import annotations

import pytest

from distill.runtime.rendezvous import (
    FIRST_PORT,
    PORT_COUNT,
    Rendezvous,
    device_index,
    expand_node_list,
    find_rendezvous,
    is_main_process,
    job_port,
    parse_tasks_per_node,
)

# What srun gives the last of seven tasks on three nodes.
STEP = {
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "node[2-3],gpu-a",
    "SLURM_JOB_NODELIST": "node[1-3],gpu-a",
    "SLURM_JOB_ID": "41",
}
LAUNCHER = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", "node1"),
        ("node[1-3,7],gpu-a", "node1 node2 node3 node7 gpu-a"),
        ("a,b,c", "a b c"),
        ("node[08-11]", "node08 node09 node10 node11"),
        ("rack[1-2]-node[3,05-06]", "rack1-node3 rack1-node05 rack1-node06 rack2-node3 rack2-node05 rack2-node06"),
        ("n[1-2].cluster.example,login", "n1.cluster.example n2.cluster.example login"),
    ],
)
def test_node_lists(text: str, hosts: str) -> None:
    assert expand_node_list(text) == hosts.split()


@pytest.mark.parametrize("text", ["", "node[1-3", "node1-3]", "node[3-1]", "node[a-b]", "a,,b", "n[]", "n[[1]]", "a b"])
def test_a_malformed_node_list_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="node list .* cannot be read"):
        expand_node_list(text)


def test_tasks_per_node() -> None:
    assert parse_tasks_per_node("2(x3),1") == [2, 2, 2, 1] and parse_tasks_per_node("4") == [4]
    with pytest.raises(ValueError, match=r"looks? like 2\(x3\),1"):
        parse_tasks_per_node("2x3")


def test_a_process_without_a_launcher_is_alone() -> None:
    assert find_rendezvous({}) == Rendezvous(0, 0, 1, 1, "127.0.0.1", 0)


def test_a_step_of_srun_is_understood() -> None:
    assert find_rendezvous(STEP) == Rendezvous(6, 0, 7, 1, "node2", job_port(41, 1))


def test_a_step_without_its_own_lists_takes_the_job_s() -> None:
    older = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP_N")}
    assert find_rendezvous(older) == Rendezvous(6, 0, 7, 1, "node1", job_port(41, 1))


def test_what_the_launcher_has_set_wins() -> None:
    assert find_rendezvous(STEP | LAUNCHER) == Rendezvous(1, 1, 2, 2, "10.0.0.1", 29500)
    found = find_rendezvous(STEP | {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "1234"})
    assert (found.rank, found.size, found.master_addr, found.master_port) == (6, 7, "10.0.0.9", 1234)
    assert find_rendezvous({"RANK": "0", "WORLD_SIZE": "1"}, local_rank=2).local_rank == 2


def test_a_batch_script_that_was_granted_many_tasks_is_still_alone() -> None:
    """SLURM sets SLURM_PROCID=0 and SLURM_NTASKS for it too: as a step it would wait for ranks that never come."""
    batch = {name: value for name, value in STEP.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    assert find_rendezvous(batch).size == 1


def test_variables_are_what_the_launcher_would_have_set() -> None:
    found = find_rendezvous(STEP)
    assert find_rendezvous(found.variables()) == found


def test_only_rank_0_speaks_before_they_meet() -> None:
    assert is_main_process({}) and is_main_process(STEP | {"SLURM_PROCID": "0"}) and is_main_process({"RANK": "x"})
    assert not is_main_process(STEP) and not is_main_process(LAUNCHER)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_PROCID": "seven"}, "RANK='seven' must be a whole number"),
        ({"SLURM_PROCID": "7"}, "RANK=7 must lie in 0 to WORLD_SIZE - 1, with WORLD_SIZE=7"),
        ({"SLURM_STEP_NODELIST": "node[1"}, "node list 'node[1' cannot be read"),
        ({"SLURM_NODEID": "3"}, "SLURM_NODEID=3, but"),
        ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID='x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2, but no MASTER_PORT"),
    ],
)
def test_what_cannot_be_right_is_one_line(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        find_rendezvous(STEP | changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_ports_differ_between_neighbours_and_stay_below_the_ephemeral_ones() -> None:
    ports = {job_port(job, step) for job in range(100, 200) for step in range(7)}
    assert len(ports) == 700
    assert all(FIRST_PORT <= job_port(job) < FIRST_PORT + PORT_COUNT <= 32768 for job in (1, 10**6, 2**31))


def test_each_rank_gets_its_gpu() -> None:
    assert [device_index(rank, 3, False) for rank in range(3)] == [0, 1, 2]
    assert device_index(2, 1, bound_to_one=True) == 0  # srun --gpus-per-task=1 shows each task one GPU only
    with pytest.raises(ValueError, match="local rank 1 has no GPU: 1 visible"):
        device_index(1, 1, bound_to_one=False)
