"""launch/slurm/submit.py: what it renders, and what it refuses before anything is queued."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from distill.config.recipes import load_recipe
from launch.slurm import submit
from tests.helpers.paths import ROOT

SLURM = ROOT / "launch" / "slurm"
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
PRODUCTION = str(ROOT / "launch" / "recipes" / "rtx4090x3.yaml")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def rendered(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert submit.main([*argv, "--dry-run"]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that it says."""
    assert submit.main([*argv, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def options(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.process
def test_production_runs_on_one_node_with_three_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    script = rendered(capsys, PRODUCTION, "train.max_steps=7", "data.sources=[a b.json, c.json]")
    found = options(script)
    assert found["nodes"] == "1" and found["gpus-per-node"] == "3" and found["ntasks-per-node"] == "1"
    assert found["cpus-per-task"] == "21"  # three ranks with six data workers each
    assert found["signal"] == "B:USR1@300" and "requeue" in found and found["open-mode"] == "append"
    assert found["job-name"] == load_recipe(Path(PRODUCTION)).name and not {"array", "begin", "dependency"} & set(found)
    (arguments,) = [line for line in script.splitlines() if line.startswith("set -- ")]
    assert shlex.split(arguments)[2:] == [PRODUCTION, "train.max_steps=7", "data.sources=[a b.json, c.json]"]
    assert "export ANYTEXT2_MAX_REQUEUES=20" in script and "bin/deepspeed" in script
    assert_bash_reads(script)


def assert_bash_reads(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_submitted(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = load_recipe(recipe).train
    gpus = next(n for n in (3, 2, 1) if batch.effective_batch % (n * batch.micro_batch) == 0)
    assert_bash_reads(rendered(capsys, str(recipe), "--gpus", str(gpus)))


def test_several_nodes_have_one_task_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    script = rendered(capsys, PRODUCTION, "--nodes", "2", "--gpus", "2", "--cpus", "4", "train.micro_batch=6")
    found = options(script)
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"], found["cpus-per-task"]) == (*"2224",)
    assert "supervise srun" in script
    assert_bash_reads(script)


def test_what_sbatch_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--begin now+1hour --every 24hours --singleton --partition gpu --account me --qos low --mem 60G --time 1-12"
    script = rendered(capsys, PRODUCTION, *words.split(), "--signal-lead", "600", "--max-requeues", "3")
    found = options(script)
    assert (found["begin"], found["dependency"], found["partition"]) == ("now+1hour", "singleton", "gpu")
    assert (found["account"], found["qos"], found["mem"], found["time"]) == ("me", "low", "60G", "1-12")
    assert found["signal"] == "B:USR1@600"
    assert "export ANYTEXT2_EVERY=24hours" in script and "export ANYTEXT2_MAX_REQUEUES=3" in script


@pytest.mark.process
def test_a_sweep_writes_each_line_into_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "sweep.txt"
    lines.write_text("train.learning_rate=1e-4\n# not this one\nlora.rank=8 'data.sources=[a b.json]' name=eight\n")
    script = rendered(capsys, PRODUCTION, "--array", str(lines), "--array-limit", "2", "seed=3", "name=sweep")
    assert options(script)["array"] == "1,3%2" and options(script)["output"].endswith("%x-%A_%a.log")
    for number, expected in (
        (1, ["name=sweep-1", "seed=3", "train.learning_rate=1e-4"]),
        (3, ["name=sweep-3", "seed=3", "lora.rank=8", "data.sources=[a b.json]", "name=eight"]),
    ):
        told = script.split("source launch/slurm/supervise.sh")[0] + "printf '%s\\n' \"$@\"\n"
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        done = subprocess.run(["bash"], input=told, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [PRODUCTION, *expected]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train.stepz=1"], "train.stepz"),
        (["objective.name=nonsense"], "objective.name='nonsense'"),
        (["--gpus", "5"], "train.effective_batch=48 is not micro_batch=8 x ranks=5"),
        (["--nodes", "3", "--gpus", "3"], "ranks=9"),
        (["--nodes", "0"], "--nodes 0: at least 1"),
        (["--gpus", "0"], "--gpus 0: at least 1"),
        (["--cpus", "0"], "--cpus 0: at least 1"),
        (["--max-requeues", "-1"], "--max-requeues -1: at least 0"),
        (["--time", "5"], "--time must be more than 360 s"),
        (["--time", "tomorrow"], "--time 'tomorrow': write it as SLURM does"),
        (["--time", "0"], "--time 0 is 0 s"),
        (["--partition", "a\n#SBATCH --exclusive"], "--partition "),
        (["--singleton", "--array", "{sweep}"], "use --array-limit 1"),
        (["--every", "1hour", "--array", "{sweep}"], "--every with --array"),
        (["--array", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--array", "{bad}"], "--array, line 2: override train.stepz"),
        (["--array", "{same}"], "lines 1 and 2 both train in runs/x"),
        (["--array", "{open}"], "line 1: No closing quotation"),
        (["--array", "{empty}"], "no line with overrides"),
        (["--deepspeed", "nowhere.json"], "--deepspeed nowhere.json: no such file"),
        (["name=two words"], "name 'two words'"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "sweep": "seed=1\n",
        "bad": "seed=1\ntrain.stepz=1\n",
        "same": "seed=1 name=x\nseed=2 name=x\n",
        "open": "name='x\n",
        "empty": "\n# nothing\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    filled = [word.format(**{name: tmp_path / name for name in files}) for word in argv]
    assert words in refused(capsys, PRODUCTION, *filled)


def test_a_missing_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no.yaml: no such file" in refused(capsys, "no.yaml")


def test_without_sbatch_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit.main([PRODUCTION, "--logs", str(tmp_path / "logs")]) == 2
    assert capsys.readouterr().err.startswith("error: sbatch: not found")


def test_what_sbatch_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in that refuses one partition, and writes down what it got."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        f'#!/bin/sh\ncat > {tmp_path}/got\ngrep -q =full {tmp_path}/got && echo "sbatch: error: full\nno" >&2'
        " && exit 1\necho '17;cluster'\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    logs = ["--logs", str(tmp_path / "logs")]
    assert submit.main([PRODUCTION, *logs]) == 0
    assert capsys.readouterr().out == f"submitted job 17; its log goes to {tmp_path / 'logs'}\n"
    assert (tmp_path / "got").read_text().startswith("#!") and (tmp_path / "logs").is_dir()
    assert submit.main([PRODUCTION, *logs, "--partition", "full"]) == 2
    assert capsys.readouterr().err == "error: sbatch: error: full no\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("08:00:00", 28800), ("1-12", 129600), ("1-00:30", 88200), ("1-0:0:5", 86405)],
)
def test_time_as_slurm_writes_it(text: str, seconds: int) -> None:
    assert submit.seconds_of(text) == seconds


# --- the files beside it ---


@pytest.mark.parametrize("name", ["train.sbatch", "train_multinode.sbatch", "supervise.sh"])
def test_bash_reads_the_shipped_scripts_and_nothing_of_a_machine_is_in_them(name: str) -> None:
    text = (SLURM / name).read_text()
    assert_bash_reads(text)
    assert not re.search(r"(?i)password|token|secret|/home/|/scratch/|/work/", text)


def test_the_shipped_header_is_what_submit_renders_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Those who submit the file itself get the same limits."""
    shipped = options((SLURM / "train.sbatch").read_text())
    ours = options(rendered(capsys, PRODUCTION))
    same = ("nodes", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue", "open-mode")
    assert {name: shipped[name] for name in same} == {name: ours[name] for name in same}


def test_the_document_s_commands_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "SLURM.md").read_text(encoding="utf-8")
    (sweep,) = re.findall(r"```\n(train\..*?)```", text, re.DOTALL)
    (tmp_path / "sweep.txt").write_text(sweep)
    for name in ("launch", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line)[2:] for line in lines if "submit.py" in line]
    assert len(commands) == 4
    for words in commands:
        assert_bash_reads(rendered(capsys, *[word for word in words if word != "--dry-run"]))


FIELD = re.compile(r"\*(/\d+)?|\d+(-\d+)?(,\d+(-\d+)?)*")
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def scrontab(text: str) -> list[tuple[str, list[str], str]]:
    """(options, the five fields of the time, command) of each entry of a scrontab file."""
    entries, pending = [], ""
    for line in text.splitlines():
        if line.startswith("#SCRON"):
            pending += line.removeprefix("#SCRON")
        elif line.strip() and not line.startswith("#"):
            *when, command = line.split(None, 5)
            entries.append((pending, when, command))
            pending = ""
    assert not pending, "options without an entry"
    return entries


def test_the_scrontab_example_is_well_formed_and_its_commands_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    entries = scrontab((SLURM / "scrontab.example").read_text())
    assert len(entries) == 2
    for sbatch_options, when, command in entries:
        assert len(when) == 5 and all(FIELD.fullmatch(field) for field in when), when
        for field, (least, most) in zip(when, RANGES, strict=True):
            assert all(least <= int(number) <= most for number in re.findall(r"\d+", field.partition("/")[0])), when
        assert all(word.startswith("--") for word in sbatch_options.split())
        words = shlex.split(re.sub(r"\$\(date .*?\)", "today", command.partition("&& ")[2]))
        assert words[:2] == [".venv/bin/python", "launch/slurm/submit.py"]
        assert_bash_reads(rendered(capsys, *words[2:]))
