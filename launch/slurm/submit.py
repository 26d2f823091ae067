"""Renders a job script and submits it: `python launch/slurm/submit.py RECIPE [--nodes N --gpus G ...] [key=value ...]`.

What cannot run is refused here, in one line, before it waits in the queue for a day. --dry-run prints the script. Exit
code 0: submitted (the job's number is printed); 2: the request, the recipe or SLURM's configuration is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.common.cli import is_command
from launch.common.tool_parsers import parse_submit as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from anytext2.core.resources import is_installed
from distill.config.ds_config import find_ds_config, read_ds_config
from distill.config.recipes import find_recipe, load_recipe
from distill.config.schema import Recipe
from distill.data.loader import BatchSizes

HERE = Path(__file__).resolve().parent
ROOT = Path.cwd() if is_installed() else HERE.parent.parent
"""Where jobs run: the checkout, or where they are submitted by an installed package."""
SCRIPTS = str(HERE.parent) if is_installed() else "launch"
"""The folder of train.py and slurm/, from ROOT."""
EARLY_S = 60  # SLURM may send its warning so much earlier than asked for
_SAFE = re.compile(r"[\w.,:;+@%/=\[\]&|*-]+")
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Request:
    """What is asked of SLURM. time as SLURM writes it; lead: seconds before the limit at which the run is told to stop.

    cpus: of one rank; None: one for it and one for each of its data workers. sweep: line number -> overrides.
    """

    nodes: int = 1
    gpus: int = 3
    cpus: int | None = None
    time: str = "1-00:00:00"
    lead: int = 300
    memory: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    begin: str = ""
    every: str = ""
    singleton: bool = False
    logs: Path = ROOT / "runs" / "slurm"
    max_requeues: int = 20
    sweep: dict[int, list[str]] = field(default_factory=dict)
    sweep_limit: int = 0

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"--cpus {self.cpus}: at least 1 is needed")
        for name in ("max_requeues", "sweep_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 0 is needed")
        for name in ("memory", "partition", "account", "qos", "begin", "every", "logs"):
            _check_word(f"--{name}", str(getattr(self, name)))
        if self.singleton and self.sweep:
            raise ValueError(
                "--singleton with --array: the jobs of an array share one name; use --array-limit 1 to run them in turn"
            )
        if self.every and self.sweep:
            raise ValueError("--every with --array: every job of the array would queue the whole array again")
        seconds = seconds_of(self.time)
        if self.lead < 1 or seconds <= self.lead + EARLY_S:
            raise ValueError(
                f"--time {self.time} is {seconds} s; the warning comes --signal-lead {self.lead} s before the end, "
                f"or up to {EARLY_S} s earlier: --time must be more than {self.lead + EARLY_S} s"
            )


def seconds_of(time: str) -> int:
    """Seconds of a time limit as SLURM writes it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises ValueError for anything else.
    """
    found = _DURATION.fullmatch(time)
    if found is None:
        raise ValueError(f"--time {time!r}: write it as SLURM does, as in 90 (minutes), 08:00:00 or 1-12:00:00")
    days, *numbers = (None if group is None else int(group) for group in found.groups())
    if days is None and numbers[2] is None:
        numbers = [0, *numbers[:2]]  # minutes come first where there are neither days nor three numbers
    hours, minutes, seconds = (number or 0 for number in numbers)
    return (((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def read_sweep(path: Path) -> dict[int, list[str]]:
    """Line number (from 1) -> the line's overrides; empty lines and those that begin with # are left out.

    Raises ValueError, naming the line, for a file that is missing, empty, or not made of key=value words.
    """
    if not path.is_file():
        raise ValueError(f"--array {path}: no such file; it holds one line of key=value words for each job")
    sweep = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"--array {path}, line {number}: {error}") from error
        if words:
            sweep[number] = words
    if not sweep:
        raise ValueError(f"--array {path}: no line with overrides in it")
    return sweep


def check(recipe_path: Path, request: Request, overrides: Sequence[str]) -> tuple[Recipe, dict[int, list[str]]]:
    """The recipe, and for a sweep every line's whole list of overrides, with a run name of its own.

    Raises ValueError for what load_recipe and BatchSizes refuse, in any line of a sweep, and for two jobs of one name.
    """
    recipe = load_recipe(recipe_path, overrides)
    ranks = request.nodes * request.gpus
    jobs, names = {}, dict[str, int]()
    for number, line in request.sweep.items():
        named = [f"name={recipe.name}-{number}", *overrides_without_name(overrides), *line]
        try:
            one = load_recipe(recipe_path, named)
            BatchSizes(one.train.effective_batch, one.train.micro_batch, ranks)
        except ValueError as error:
            raise ValueError(f"--array, line {number}: {error}") from error
        if one.name in names:
            raise ValueError(
                f"--array: lines {names[one.name]} and {number} both train in {one.run_dir}; name= them apart"
            )
        names[one.name] = number
        jobs[number] = named
    if not jobs:
        BatchSizes(recipe.train.effective_batch, recipe.train.micro_batch, ranks)
    _check_word("name", recipe.name)
    return recipe, jobs


def overrides_without_name(overrides: Sequence[str]) -> list[str]:
    return [item for item in overrides if not item.startswith("name=")]


def render(
    recipe_path: Path, recipe: Recipe, request: Request, words: Sequence[str], environment: dict[str, str]
) -> str:
    """The job script: the shipped one with its #SBATCH lines replaced and its arguments and settings written in.

    words: overrides of the recipe. environment: settings of supervise.sh.
    """
    template = (HERE / ("train.sbatch" if request.nodes == 1 else "train_multinode.sbatch")).read_text("utf-8")
    template = template.replace(" launch/", f" {SCRIPTS}/")
    lines = [line for line in template.splitlines() if not line.startswith("#SBATCH")]
    assert lines[0].startswith("#!")
    settings = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    arguments = [f"set -- {shlex.join([str(recipe_path), *words])}"]
    return "\n".join([lines[0], *header(recipe, request), *settings, *arguments, *lines[1:]]) + "\n"


def render_sweep(script: str, jobs: dict[int, list[str]]) -> str:
    """`script` with each array task's overrides written in, so that editing the file later changes no queued job."""
    if not jobs:
        return script
    cases = [f'  {number}) set -- "$@" {shlex.join(words)} ;;' for number, words in jobs.items()]
    choice = [
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        '  *) echo "no line $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;',
        "esac",
    ]
    source = f"source {SCRIPTS}/slurm/supervise.sh"
    before, after = script.split(source, 1)
    return before + "\n".join(choice) + f"\n{source}" + after


def header(recipe: Recipe, request: Request) -> list[str]:
    """The #SBATCH lines. Raises ValueError where this checkout's folder cannot stand in one."""
    _check_word("this checkout's folder", str(ROOT))
    _check_word("the folder of this package", SCRIPTS)
    per_rank = request.cpus or recipe.data.workers + 1
    single = request.nodes == 1  # one task there, the launcher of all ranks
    options: dict[str, object] = {
        "job-name": recipe.name,
        "nodes": request.nodes,
        "ntasks-per-node": 1 if single else request.gpus,
        "cpus-per-task": per_rank * request.gpus if single else per_rank,
        "gpus-per-node": request.gpus,
        "time": request.time,
        "signal": f"B:USR1@{request.lead}",
        "requeue": None,
        "open-mode": "append",
        "chdir": ROOT,
        "output": request.logs / ("%x-%A_%a.log" if request.sweep else "%x-%j.log"),
        "mem": request.memory,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "begin": request.begin,
        "dependency": "singleton" if request.singleton else "",
        "array": _array(request),
    }
    return [
        f"#SBATCH --{name}" + ("" if value is None else f"={value}") for name, value in options.items() if value != ""
    ]


def _array(request: Request) -> str:
    limit = f"%{request.sweep_limit}" if request.sweep_limit else ""
    return ",".join(map(str, request.sweep)) + limit if request.sweep else ""


def _check_word(what: str, value: str) -> None:
    """A value of a #SBATCH line may not begin a second option, nor a second line."""
    if value and not _SAFE.fullmatch(value):
        raise ValueError(f"{what} {value!r}: letters, digits and . , : + - _ / = @ % without blanks, please")


def submit(script: str) -> str:
    """Hands the script to sbatch; the job's number. Raises ValueError with what sbatch said, in one line."""
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(
            "sbatch: not found; submit from a machine of the cluster, or see the script with --dry-run"
        ) from None
    if done.returncode:
        raise ValueError(" ".join(done.stderr.split()) or f"sbatch ended with exit code {done.returncode}")
    return done.stdout.strip().split(";")[0]


def script_of(args: argparse.Namespace) -> str:
    """The job script that the command line asks for. Raises ValueError for what cannot run."""
    request = Request(
        nodes=args.nodes,
        gpus=args.gpus,
        cpus=args.cpus,
        time=args.time,
        lead=args.signal_lead,
        memory=args.mem,
        partition=args.partition,
        account=args.account,
        qos=args.qos,
        logs=(args.logs or Request.logs).resolve(),
        begin=args.begin,
        every=args.every,
        singleton=args.singleton,
        max_requeues=args.max_requeues,
        sweep=read_sweep(args.array) if args.array else {},
        sweep_limit=args.array_limit,
    )
    recipe, jobs = check(args.recipe, request, args.overrides)
    read_ds_config(args.deepspeed)
    environment = {
        "ANYTEXT2_DEEPSPEED": str(find_ds_config(args.deepspeed).resolve()),
        "ANYTEXT2_MAX_REQUEUES": str(request.max_requeues),
        "ANYTEXT2_EVERY": request.every,
    }
    if is_installed():
        environment["ANYTEXT2_BIN"] = os.environ.get("ANYTEXT2_BIN", str(Path(sys.executable).parent))
    words = [] if jobs else args.overrides
    return render_sweep(render(find_recipe(args.recipe).resolve(), recipe, request, words, environment), jobs)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        script = script_of(args)
        if args.dry_run:
            print(script, end="", flush=True)
            return 0
        logs = args.logs or Request.logs
        logs.mkdir(parents=True, exist_ok=True)  # SLURM makes no folders: the job would end without a word
        print(f"submitted job {submit(script)}; its log goes to {logs}", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
