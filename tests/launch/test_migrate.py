"""launch/migrate.py: what it writes can be trained, and what it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from distill.migration.table import table
from launch import migrate
from tests.helpers.old_settings import V1, write_v2_4
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import returned, run_ranks
from tests.helpers.processes.training_runs import TrainingFolder, train_command

SMALL = (
    "train.max_steps=1 train.effective_batch=4 train.micro_batch=4 train.threads=1 data.workers=0 data.part=all "
    "lora.rank=2 data.options.resolution=64 data.options.max_lines=1 tracking.enabled=false"
)


@pytest.mark.slow
@pytest.mark.process
def test_what_is_written_trains(tmp_path: Path) -> None:
    runs = TrainingFolder.create(tmp_path, 9)
    old = {"v2_4": str(write_v2_4(tmp_path)), "v1": V1}
    for name, words in old.items():
        recipe = tmp_path / f"{name}.yaml"
        assert migrate.main(["--out", str(recipe), words]) == 0
        argv = runs.argv(name, *SMALL.split())
        argv[argv.index("--config") + 1] = str(recipe)
        returned(run_ranks(1, train_command, argv))
        assert (runs.run_dir(name) / "checkpoint-1").is_dir()


def test_it_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_v2_4(
        tmp_path, ("seed: 42", "sead: 42"), ("gradient_accumulation_steps: 4", "gradient_accumulation_steps: 1")
    )
    out = tmp_path / "new" / "mine.yaml"
    assert migrate.main(["--out", str(out), str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "script: v2_4, 2 GPUs; objective consistency"
    assert any(line.startswith("changed: w_max=15.0 -> objective.w_max=14.0:") for line in lines)
    assert any(line.startswith("changed: learning_rate=0.0001") for line in lines)
    assert "unknown: sead: no script had it; nearest is seed" in lines
    assert any(line.startswith("warning: train.effective_batch=8") for line in lines)
    assert lines[-1] == f"next: deepspeed --num_gpus 2 launch/train.py --deepspeed ds_configs/zero2.json --config {out}"
    assert [path.name for path in out.parent.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ([("lora_rank: 64", "lora_rank: 0")], "the old values make no recipe: lora.rank=0 must be at least 1"),
        ([("train_ratio: 0.98", "train_ratio: 0.5")], "the old values make no recipe: data.split"),
    ],
)
def test_a_recipe_that_a_training_would_refuse_is_not_written(
    changes: list[tuple[str, str]], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "mine.yaml"
    assert migrate.main(["--out", str(out), str(write_v2_4(tmp_path, *changes))]) == 2
    said = capsys.readouterr().err
    assert error in said and said.count("\n") == 1
    assert not list(out.parent.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_v2_4(tmp_path)
    before = path.read_text()
    assert migrate.main(["--out", str(path), str(path)]) == 2 and path.read_text() == before
    assert migrate.main([]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_document_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert migrate.main(["--table"]) == 0
    assert capsys.readouterr().out.strip() == table()
    assert table() in (ROOT / "docs" / "MIGRATION.md").read_text(encoding="utf-8"), "paste what --table prints"


def test_the_document_names_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "MIGRATION.md").read_text(encoding="utf-8").partition("## Other commands")[2]
    named = re.findall(r"launch/(\w+)\.py([^`|]*)`((?:[,;] `--[\w-]+` is `--[\w-]+`)*)", text)
    assert len(named) > 4
    for command, words, renamed in named:
        with pytest.raises(SystemExit):
            importlib.import_module(f"launch.{command}").main(["--help"])
        said = capsys.readouterr().out
        for option in [*re.findall(r"--[\w-]+", words), *re.findall(r"is `(--[\w-]+)`", renamed)]:
            assert option in said, f"launch/{command}.py {option}"
