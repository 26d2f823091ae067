"""What commands share: one line for an error or Ctrl-C, and output paths that are checked before the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch import build_lmdb_cache, check_dataset, evaluate, infer, make_dataset
from launch.common import cli
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "error: two lines"),
        (ValueError(), "error: ValueError"),
        (PermissionError(13, "Permission denied", "/x/y"), "error: /x/y: Permission denied"),
        (OSError("plain"), "error: plain"),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert cli.run_command(fail) == 2
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("module", "function", "argv"),
    [
        (infer, "load_sampling_model", []),
        (evaluate, "load_sampling_model", []),
        (make_dataset, "write_dataset", ["--count", "3"]),
        (check_dataset, "check_source", ["{data}"]),
        (build_lmdb_cache, "load_dataset", ["{data}"]),
    ],
)
def test_ctrl_c_is_one_line_and_code_130(
    module: Any, function: str, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    data = tmp_path / "data.json"
    data.write_text("{}")
    monkeypatch.setattr(module, function, interrupt)
    argv = [word.replace("{data}", str(data)) for word in argv]
    assert module.main([*argv, "--out", str(tmp_path / "out")]) == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json"]


NOBODY = 65534


def heed_ctrl_c() -> None:
    """Shells start what runs in the background with Ctrl-C ignored, and processes inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(script: str, *argv: str, cwd: Path) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it."""
    command = [sys.executable, str(ROOT / "launch" / script), *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Ctrl-C for the whole group; exit code and outputs."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, error


@pytest.mark.process
def test_ctrl_c_while_pictures_are_drawn_leaves_the_old_ones(tmp_path: Path) -> None:
    """The whole group gets the signal, workers too."""
    assert make_dataset.main(["--out", str(tmp_path / "drawn"), "--count", "2"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "drawn").rglob("*") if path.is_file()}
    argv = ["--out", "drawn", "--count", "100000", "--workers", "2", "--seed", "1"]
    drawing = start("make_dataset.py", *argv, cwd=tmp_path)
    hidden = tmp_path / "drawn" / ".imgs.partial"
    while drawing.poll() is None and not (hidden.is_dir() and any(hidden.iterdir())):
        time.sleep(0.05)
    assert interrupted(drawing) == (130, "", "interrupted\n")
    assert {path: path.read_bytes() for path in (tmp_path / "drawn").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["data.json", "imgs"]


@pytest.mark.process
def test_ctrl_c_while_a_dataset_is_checked_leaves_nothing(tmp_path: Path) -> None:
    assert make_dataset.main(["--out", str(tmp_path / "drawn"), "--count", "80"]) == 0
    argv = ["drawn/data.json", "--out", "check.json", "--workers", "1", "resolution=512"]
    checking = start("check_dataset.py", *argv, cwd=tmp_path)
    assert checking.stdout is not None and checking.stdout.readline().startswith("recipe: demo.yaml")
    code, _, error = interrupted(checking)
    assert code == 130 and error.splitlines()[-1] == "interrupted" and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn"]


@pytest.mark.process
def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path) -> None:
    code = (
        "import signal, sys; sys.argv = ['anytext2-infer']; from launch.common.cli import is_command\n"
        "assert is_command('launch.infer') and not is_command.__doc__ is None; signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=heed_ctrl_c
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_module_that_is_not_the_command_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert not cli.is_command("launch.infer") and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "file is a file; name a folder"),
        ("file/deep/er", "file is a file; name a folder"),
        ("x" * 300, "File name too long"),
        ("/proc/nothing/here", "cannot be written (/proc:"),
    ],
)
def test_a_folder_that_cannot_be_written(path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out") as caught:
        cli.require_output_folder(tmp_path / path, "--out")
    assert words in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # root may write everywhere
        os.seteuid(NOBODY)
    try:
        with pytest.raises(ValueError, match="Permission denied"):
            cli.require_output_folder(tmp_path / "out", "--out")
    finally:
        os.seteuid(user)


def test_output_paths_that_can_be_written_are_not_made(tmp_path: Path) -> None:
    cli.require_output_folder(tmp_path / "a" / "b", "--out")
    cli.require_output_file(tmp_path / "a" / "b.json", "--out")
    with pytest.raises(ValueError, match="is a folder; name a file"):
        cli.require_output_file(tmp_path, "--out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        (infer, ["--out", "{file}"]),
        (infer, ["--device", "cuda:99"]),
        (infer, ["--device", "tpu"]),
        (infer, ["--steps", "0"]),
        (evaluate, ["--out", "{file}/x"]),
        (evaluate, ["--device", "mps"]),
        (check_dataset, ["{data}", "--out", "{folder}"]),
        (build_lmdb_cache, ["{data}", "--out", "{folder}"]),
        (build_lmdb_cache, ["{data}", "--out", "{folder}/s.lmdb", "--device", "cuda:99"]),
        (make_dataset, ["--count", "2", "--out", "{file}"]),
    ],
)
def test_a_wrong_command_is_one_line_before_any_work(module: Any, argv: list[str], tmp_path: Path, capsys: Any) -> None:
    data, file = tmp_path / "data.json", tmp_path / "file"
    for path in (data, file):
        path.write_text("{}")
    words = [
        w.replace("{data}", str(data)).replace("{file}", str(file)).replace("{folder}", str(tmp_path)) for w in argv
    ]
    assert module.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "file"]
