"""Where a run goes on, and the sums of a log line that a checkpoint falls into. No ranks, no engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from distill.adapters.roles import AdapterRoles
from distill.checkpoint.store import save_checkpoint
from distill.config.schema import CheckpointConfig, Recipe
from distill.data.loader import BatchSizes
from distill.training.checkpointing import Checkpoints
from distill.training.engine import Engine
from distill.training.metrics import MetricsWindow
from distill.training.null_objects import NullWriter
from distill.training.resume import resume_from
from distill.training.state import Progress

# --- where it goes on ---


def saved(run_dir: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(run_dir, step, lambda folder: (folder / "a").write_text("x") and None, keep=9)
    return run_dir / f"checkpoint-{steps[-1]}"


def recipe(tmp_path: Path, resume: str) -> Recipe:
    return Recipe(name="mine", run_root=str(tmp_path), checkpoint=CheckpointConfig(resume=resume))


def test_another_run_s_checkpoint_is_only_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = saved(tmp_path / "other", 5, 9)
    wish = recipe(tmp_path, str(other))
    assert resume_from(wish) == other
    mine = saved(tmp_path / "mine", 2, 11)
    assert resume_from(wish) == mine
    assert f"checkpoint.resume={other} was only its start" in capsys.readouterr().out
    assert resume_from(recipe(tmp_path, str(tmp_path / "mine" / "checkpoint-2"))).name == "checkpoint-2"  # type: ignore[union-attr]
    assert resume_from(recipe(tmp_path, "auto")) == mine


def test_never_and_auto_in_a_fresh_folder(tmp_path: Path) -> None:
    assert resume_from(recipe(tmp_path, "auto")) is None is resume_from(recipe(tmp_path, "never"))
    saved(tmp_path / "mine", 1)
    with pytest.raises(ValueError, match="checkpoint.resume=never"):
        resume_from(recipe(tmp_path, "never"))


# --- when a checkpoint is due ---


def due(save_steps: int, save_epochs: int, progress: Progress) -> bool:
    recipe = Recipe(checkpoint=CheckpointConfig(save_steps=save_steps, save_epochs=save_epochs))
    engine = cast(Engine, SimpleNamespace(plan=BatchSizes(4, 2, 1)))
    return Checkpoints(recipe, engine, cast(AdapterRoles, None), NullWriter(), 10, "").is_due(progress)


def test_a_pass_over_the_data_ends_once() -> None:
    """Batches of 4 out of 10 samples: passes end in batches 3, 5, 8, 10, ..."""
    found, last = [], 0
    for batch in range(1, 11):
        if batch == 5:
            continue  # its update was skipped: the next one has the checkpoint
        if due(0, 1, Progress(updates=batch, batches=batch, saved_batches=last)):
            found.append(batch)
            last = batch
    assert found == [3, 6, 8, 10]
    assert [b for b in range(1, 11) if due(4, 0, Progress(updates=b, batches=b))] == [4, 8]
    assert not any(due(0, 0, Progress(updates=b, batches=b)) for b in range(1, 11))


# --- the log line that a checkpoint falls into ---


def window(world: int, rank: int, micro: int, shares: list[dict[str, Any]] | None = None) -> MetricsWindow:
    plan = BatchSizes(12, micro, world)
    place = SimpleNamespace(size=world, rank=rank, is_main=rank == 0, device=torch.device("cpu"))
    return MetricsWindow(cast(Engine, SimpleNamespace(plan=plan, world=place)), shares or ())


def filled(world: int, micro: int, odd: float = 0.0) -> list[dict[str, Any]]:
    """Two global batches, in which sample i of all has the loss i / 7; as it comes back from a file."""
    shares = []
    for rank in range(world):
        own = window(world, rank, micro)
        for number in range(24 // micro // world):
            first = (number * world + rank) * micro
            loss = torch.arange(first, first + micro).float().mean() / 7
            own.add({"loss": loss, "odd": torch.tensor(odd)}, Counter({"missing": rank}))
        shares.append(own.share())
    return cast("list[dict[str, Any]]", json.loads(json.dumps(shares, allow_nan=False)))


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_window_goes_on_in_any_layout(world: int, micro: int) -> None:
    shares = filled(2, 2)
    assert [share["batches"] for share in shares] == [2, 2]
    resumed = [window(world, rank, micro, shares).share() for rank in range(world)]
    if (world, micro) == (2, 2):
        assert [share | {"unreadable": {}} for share in resumed] == [share | {"unreadable": {}} for share in shares]
    means = [share["sums"]["loss"] / share["micro_batches"] for share in resumed]
    assert sum(means) / world == pytest.approx(11.5 / 7, rel=1e-6)
    assert [share["batches"] for share in resumed] == [2] * world
    assert sum((Counter(share["unreadable"]) for share in resumed), Counter()) == {"missing": 6}


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_a_sum_that_is_not_finite_passes_through_json(odd: float) -> None:
    (share,) = filled(1, 2, odd)
    assert share["sums"]["odd"] == str(odd)
    assert window(1, 0, 2, [share]).share()["sums"] == share["sums"]


def test_an_empty_window_is_nothing_to_resume() -> None:
    empty = window(1, 0, 2).share()
    assert empty["batches"] == 0 and window(1, 0, 2, [empty]).share() == empty
