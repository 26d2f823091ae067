"""The last lines of a run: its results, and two commands that can be given as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.runtime.world import World
from distill.training.null_objects import NullTracker
from distill.training.state import Progress
from distill.training.trainer import Trainer
from launch.common import parsers, tool_parsers
from launch.common.next_steps import closing_lines, next_commands
from tests.helpers.paths import ROOT

PARSERS: dict[str, Any] = {
    "infer.py": parsers.parse_infer,
    "evaluate.py": parsers.parse_evaluate,
    "show_dataset.py": parsers.parse_show_dataset,
    "export_weights.py": tool_parsers.parse_export,
}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["infer.py", "evaluate.py"]),
        (["run_root=/tmp/my runs", "name=a b"], ["infer.py", "evaluate.py"]),
        (["data.sources=[a.json]", "eval.data=[b.json,c.json]"], ["infer.py", "evaluate.py"]),
        (["data.sources=[a.json]"], ["infer.py", "mlflow"]),
        (["data.sources=[a.json]", "tracking.uri=http://host:5000"], ["infer.py", "show_dataset.py"]),
        (["data.sources=[a.json]", "tracking.enabled=false"], ["infer.py", "show_dataset.py"]),
        (["objective={name: denoise}", "model.weights=scratch"], ["export_weights.py", "mlflow"]),
        (
            ["objective={name: autoencode}", "model.parts=[x.safetensors]", "tracking.enabled=false"],
            ["export_weights.py", "show_dataset.py"],
        ),
    ],
)
def test_the_next_commands_can_be_parsed(overrides: list[str], names: list[str]) -> None:
    recipe = load_recipe(DEFAULT_RECIPE, ["log.preview_every=0", *overrides])
    found = [shlex.split(command) for command in next_commands(recipe)]
    assert [Path(words[0 if "mlflow" in words[0] else 1]).name for words in found] == names
    for words in found:
        if "mlflow" in words[0]:
            assert words[1:] == ["ui", "--backend-store-uri", "sqlite:///runs/mlflow.db", "--host", "127.0.0.1"]
            continue
        assert Path(words[1]).samefile(ROOT / "launch" / Path(words[1]).name)
        args = PARSERS[Path(words[1]).name](words[2:])
        assert getattr(args, "checkpoint", recipe.run_dir) == recipe.run_dir
        if "evaluate.py" in words[1]:
            assert [str(path) for path in args.data] == recipe.eval.data


def finished(tmp_path: Path, updates: int, **changes: Any) -> Trainer:
    """A trainer with nothing in it but what its end needs."""
    overrides = [f"run_root={tmp_path}", "name=mine", "train.max_steps=10", "eval.patience=2"]
    parts = dict.fromkeys(Trainer.__dataclass_fields__)
    known = {
        "recipe": load_recipe(DEFAULT_RECIPE, overrides),
        "progress": Progress(updates=updates, **changes),
        "engine": SimpleNamespace(world=World(0, 0, 1, None)),  # type: ignore[arg-type]
        "guard": SimpleNamespace(stop_reasons=lambda: ""),
        "validation": SimpleNamespace(is_out_of_patience=lambda progress: progress.evaluations_since_best >= 2),
        "checkpoints": SimpleNamespace(finish=lambda: None, deliverables=lambda progress: {}),
        "tracker": NullTracker(),
        "facts": {},
    }
    return Trainer(**(parts | known))


@pytest.mark.parametrize(
    ("updates", "since_best", "line"),
    [
        (14, 0, "is at update 14 of 10: nothing to do (a larger train.max_steps goes on, as in train.max_steps=28)"),
        (10, 0, "is at update 10 of 10: nothing to do"),
        (6, 2, "is at update 6 of 10: nothing to do (ended by eval.patience=2; a larger one goes on)"),
    ],
)
def test_a_run_that_has_nothing_to_do_says_so(
    tmp_path: Path, updates: int, since_best: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = finished(tmp_path, updates, best_update=4, evaluations_since_best=since_best)
    assert trainer.run() is None
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'mine'} {line}")


def test_a_finished_run_says_where_its_results_are(tmp_path: Path) -> None:
    trainer = finished(tmp_path, 10, best_update=6)
    for name in ("checkpoint-10", "checkpoint-6", "metrics.jsonl", "audit.png"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    results, *following = closing_lines(trainer)
    run = tmp_path / "mine"
    saved = f"checkpoint {run}/checkpoint-10; best {run}/checkpoint-6"
    assert results == f"results: {saved}; curves {run}/metrics.jsonl; inputs {run}/audit.png"
    assert len(following) == 2 and all(line.startswith("next: ") for line in following)
