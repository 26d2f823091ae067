"""Every command of the README is run here, with smaller numbers added where it would take long."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.processes.ports import free_port
from tests.helpers.processes.ranks import RankResult, run_ranks

BIN = Path(sys.executable).parent
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)

# What is added to a command, by the words that name it. Commands run in the README's order, in one folder.
SHORTER = {
    "zero2.json": "train.max_steps=2 train.effective_batch=4 train.micro_batch=4 data.synthetic.count=16 "
    "log.preview_every=0 log.every=1",
    "evaluate.py": "--count 2 --teacher-steps 2 --undistilled-steps 1 --student-steps 1,2",
    "infer.py": "--teacher-steps 2",
    "make_dataset.py": "--count 3",
    "show_dataset.py": "--count 2",
}


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place that looks like the checkout, so that relative paths of the README hold and results stay out of it."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("launch", "ds_configs", "docs", "fonts"):
        (place / name).symlink_to(ROOT / name)
    return place


def run(command: str, folder: Path, extra: str = "") -> subprocess.CompletedProcess[str]:
    words = [w.replace(".venv/bin", str(BIN)) for w in shlex.split(f"{command} {extra}")]
    if words[0] == str(BIN / "python"):
        words[0] = sys.executable
    if words[0] == str(BIN / "deepspeed"):  # another training on this machine may have the usual port
        words[1:1] = ["--master_port", str(free_port())]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def call_main(module: str, argv: list[str], folder: Path) -> None:
    os.chdir(folder)
    raise SystemExit(importlib.import_module(module).main(argv))


def run_forked(command: str, folder: Path, extra: str = "") -> RankResult:
    """`python launch/NAME.py ...` in a process that has imported everything: the same without seconds of imports."""
    _, script, *argv = shlex.split(f"{command} {extra}")
    module = script.removesuffix(".py").replace("/", ".")
    return run_ranks(1, call_main, module, argv, folder)[0]


def shorter(command: str) -> str:
    return next((extra for word, extra in SHORTER.items() if word in command), "")


def test_the_readme_has_no_command_that_this_file_does_not_know() -> None:
    known = (
        *BY_MAKE,
        "make demo",
        "make test",
        "make page",
        "launch/train.py",
        "evaluate.py",
        "infer.py",
        "launch/export.py",
        "reference_sampler.py",
        "make_dataset.py",
        "show_dataset.py",
        "check_dataset.py",
        "build_lmdb_cache.py",
        "mlflow ui",
        "submit.py",
        "status.py",
    )
    unknown = [c for c in commands() if not any(word in c for word in known)]
    assert not unknown


BY_MAKE = ("python3 -m venv", "pip install", "ruff check", "bin/mypy", "-m pytest")  # .ci/run runs these: make test


def test_make_runs_the_readme_s_commands_for_set_up_and_tests() -> None:
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8")
    for variable, value in (("$(BIN)", ".venv/bin"), ("$(PYTHON)", "python3"), ("$(if $(LOCK),-r $(LOCK)) ", "")):
        recipes = recipes.replace(variable, value)
    for words in BY_MAKE:
        (command,) = [c for c in commands() if words in c]
        assert f"\t{command}\n" in recipes, command


@pytest.mark.process
def test_make_demo_calls_the_plain_commands_of_the_readme() -> None:
    plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    plain = [
        c for c in commands() if c.startswith(".venv/bin") and ("--run runs/demo" in c or c.endswith("zero2.json"))
    ]
    assert len(plain) == 2
    assert [line for line in plan.splitlines() if line in plain] == plain


@pytest.mark.slow
def test_the_plain_commands_work_in_order_and_leave_what_the_readme_lists(folder: Path) -> None:
    for command in commands():
        if (
            command.startswith("make ")
            or any(words in command for words in BY_MAKE)
            or "mlflow ui" in command
            or "rtx4090x3.yaml model.weights" in command
        ):
            continue
        # One of the scripts is started as a person would; to start every one would take as long as all they do.
        forked = command.startswith(".venv/bin/python launch/") and "evaluate.py" not in command
        done = (run_forked if forked else run)(command, folder, shorter(command))
        code = done.exit_code if isinstance(done, RankResult) else done.returncode
        assert code == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    demo = folder / "runs" / "demo"
    for name in (
        "summary.json",
        "grid.png",
        "sheet.png",
        "audit.png",
        "data_samples.png",
        "metrics.jsonl",
        "recipe.yaml",
        "run.json",
    ):
        assert (demo / name).is_file(), name
    assert (demo / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert list((folder / "runs" / "pictures").rglob("*.png"))
    assert (folder / "runs" / "drawn" / "data.json").is_file()
    assert (folder / "runs" / "sheet" / "index.html").is_file() and (folder / "runs/check/data.json").is_file()
    assert (folder / "runs" / "drawn" / "features.lmdb").is_file()


@pytest.mark.slow
def test_the_production_command_starts_and_says_what_is_missing(folder: Path) -> None:
    command = next(c for c in commands() if "rtx4090x3.yaml model.weights" in c).replace("--num_gpus 3", "--num_gpus 1")
    done = run(command, folder)
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "data/anyword/laion/data_v1.2b.json" in errors[0] or "models/anytext_v2.0.ckpt" in errors[0]


@pytest.mark.slow
def test_the_tracking_page_opens(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(next(c for c in commands() if "mlflow ui" in c).replace(".venv/bin", str(BIN)))
    (folder / "runs").mkdir(exist_ok=True)
    server = subprocess.Popen([*words, "--port", str(port)], cwd=folder, start_new_session=True)
    try:
        end = time.monotonic() + 300.0  # a loaded machine imports MLflow for a minute and more
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert server.poll() is None, "mlflow ui ended"
                time.sleep(0.5)
        pytest.fail("mlflow ui did not answer within five minutes")
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
