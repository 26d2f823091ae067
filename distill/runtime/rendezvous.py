"""Reads rank, world size and master address from the variables of a launcher or of SLURM.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; `srun` sets its own variables.
A launcher's variables take precedence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORT_COUNT = 20000, 12000  # below 32768, where Linux's ephemeral ports begin
PORT_STRIDE = 7  # ports between one job and the next, so that the steps of a job have different ones

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True)
class Rendezvous:
    """A process's place in its group. local_size: ranks on this host. master_port: 0 (a single rank): any free one."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    master_addr: str
    master_port: int

    def variables(self) -> dict[str, str]:
        """The environment variables that torch and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def find_rendezvous(environment: Mapping[str, str], local_rank: int = 0) -> Rendezvous:
    """This process's place. local_rank: the launcher's argument of that name, used where LOCAL_RANK is not set.

    Without a launcher and outside of `srun` there is one rank. Raises ValueError for variables that contradict each
    other or cannot be read, and for several ranks without a port.
    """
    step = {} if "RANK" in environment else _slurm_step(environment)
    known = step | {name: value for name, value in environment.items() if name in _NAMES}
    rank, size = _number(known, "RANK", "0"), _number(known, "WORLD_SIZE", "1")
    local = _number(known, "LOCAL_RANK", str(max(local_rank, 0)))
    local_size = _number(known, "LOCAL_WORLD_SIZE", str(size))
    if not 0 <= rank < size:
        raise ValueError(f"RANK={rank} must lie in 0 to WORLD_SIZE - 1, with WORLD_SIZE={size}")
    port = _number(known, "MASTER_PORT", "0")
    if size > 1 and not port:
        raise ValueError(
            f"RANK={rank}, WORLD_SIZE={size}, but no MASTER_PORT: set MASTER_ADDR and MASTER_PORT to the same "
            "values for all ranks, or start them with deepspeed, torchrun or srun"
        )
    return Rendezvous(rank, local, size, local_size, known.get("MASTER_ADDR") or LOOPBACK, port)


_NAMES = frozenset(Rendezvous(0, 0, 1, 1, "", 0).variables())


def is_main_process(environment: Mapping[str, str]) -> bool:
    """Whether this is rank 0, before the process group exists; True where the variables cannot be read."""
    try:
        return find_rendezvous(environment).rank == 0
    except ValueError:  # `find_rendezvous` is called again by what needs the rest, and reports it
        return True


def in_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started this process. A batch script has a SLURM_PROCID too, but no step id."""
    return "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment


def device_index(local_rank: int, visible: int, bound_to_one: bool) -> int:
    """Which of the `visible` GPUs this rank uses. bound_to_one: SLURM may show each task only its own GPU.

    Raises ValueError where there is no GPU for this rank.
    """
    if bound_to_one and visible == 1:
        return 0
    if local_rank >= visible:
        raise ValueError(
            f"local rank {local_rank} has no GPU: {visible} visible; start one rank a GPU, at most {visible} here"
        )
    return local_rank


def _slurm_step(environment: Mapping[str, str]) -> dict[str, str]:
    """SLURM's variables under the launcher's names; empty where `srun` did not start this process."""
    if not in_slurm_step(environment):
        return {}
    size = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
    }
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if tasks:
        counts = parse_tasks_per_node(tasks)
        node = _number(environment, "SLURM_NODEID", "0")
        if node >= len(counts):
            raise ValueError(f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE={tasks} has {len(counts)} node(s)")
        found["LOCAL_WORLD_SIZE"] = str(counts[node])
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if nodes:
        found["MASTER_ADDR"] = expand_node_list(nodes)[0]
    job = environment.get("SLURM_JOB_ID")
    if job and size != "1":
        found["MASTER_PORT"] = str(
            job_port(_number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID"))
        )
    return found


def job_port(job: int, step: int = 0) -> int:
    """The master port of a job's step: the same for all its ranks, another one for the next job."""
    return FIRST_PORT + (PORT_STRIDE * job + step) % PORT_COUNT


def expand_node_list(text: str) -> list[str]:
    """The hosts of a SLURM node list in order: `node[1-3,07],gpu-a` -> node1, node2, node3, node07, gpu-a.

    Raises ValueError for what is not such a list.
    """
    hosts: list[str] = []
    for part in _split_outside_brackets(text):
        hosts += _expand_brackets(part, text)
    return hosts


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise _unreadable(text)
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth:
        raise _unreadable(text)
    return [*parts, text[start:]]


def _expand_brackets(part: str, whole: str) -> list[str]:
    found = _BRACKETS.search(part)
    if found is None:
        if not part.strip() or set(part) & set("[] "):
            raise _unreadable(whole)
        return [part]
    before, after = part[: found.start()], part[found.end() :]
    hosts = []
    for item in found[1].split(","):
        limits = _RANGE.fullmatch(item)
        if limits is None:
            raise _unreadable(whole)
        first, last = limits[1], limits[2] or limits[1]
        numbers = range(int(first), int(last) + 1)
        if not numbers:
            raise _unreadable(whole)
        # the width of the first number is the width of all: node[08-10] is node08, node09, node10
        hosts += [f"{before}{number:0{len(first)}d}{after}" for number in numbers]
    return [host for candidate in hosts for host in _expand_brackets(candidate, whole)]


def _unreadable(text: str) -> ValueError:
    return ValueError(f"node list {text!r} cannot be read; it should look like node[1-3,7],gpu-a")


def parse_tasks_per_node(text: str) -> list[int]:
    """SLURM's counts by node: `2(x3),1` -> 2, 2, 2, 1. Raises ValueError for what is not such a list."""
    counts: list[int] = []
    for item in text.split(","):
        found = _TASKS.fullmatch(item)
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text!r} cannot be read; it should look like 2(x3),1")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _number(variables: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = variables.get(name) or default
    if text is None or not text.isdecimal():
        raise ValueError(f"{name}={variables.get(name)!r} must be a whole number of at least 0")
    return int(text)
