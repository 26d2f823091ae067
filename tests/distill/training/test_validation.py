"""Selection by spelling, in real runs: the best checkpoint stays, no progress ends a run, ranks share the reading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anytext2.core.batch import TextLine
from distill.checkpoint.formats import read_adapter, read_trainer_state
from distill.checkpoint.store import find_checkpoint
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.config.schema import EvalConfig, Recipe
from distill.evaluation.strokes import LineStructure
from distill.runtime.world import World
from distill.training import validation
from distill.training.state import Progress
from launch import train
from tests.helpers.processes.ranks import all_output, returned, run_ranks, start_ranks
from tests.helpers.processes.train_patches import after_run
from tests.helpers.processes.training_runs import TrainingFolder

SMALL = ("train.effective_batch=6", "train.micro_batch=1", "train.ema_decay=0.5", "checkpoint.keep=1")
HITS = {1: 4, 2: 7, 3: 7, 4: 5, 5: 6, 6: 7}
"""Update -> lines read exactly, of 10, by every rank."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    return TrainingFolder.create(tmp_path_factory.mktemp("validation"), 40)


def train_with_scripted_readings(argv: list[str]) -> int:
    """The command with a validation whose pictures are read as HITS says."""

    def read(self: validation.SpellingValidation, progress: Progress) -> dict[str, float]:
        hits = float(HITS[progress.updates])
        nearer = 0.5 if progress.updates == 3 else 0.0
        return dict.fromkeys(validation.SUMS, 0.0) | {"lines": 10.0, "hits": hits, "ned": hits + nearer}

    validation.SpellingValidation._read = read  # type: ignore[method-assign]  # this process is forked for one call
    return train.main(argv)


@pytest.mark.process
def test_the_best_speller_is_kept_and_patience_ends_the_run(runs: TrainingFolder) -> None:
    command = runs.argv("scripted", *SMALL, "train.max_steps=50", "eval.every=1", "eval.patience=2", "eval.samples=4")
    results = run_ranks(2, train_with_scripted_readings, command)
    assert returned(results) == [0, 0]
    run_dir = runs.run_dir("scripted")
    # Update 3 reads as many lines as update 2 and is nearer to the others; two evaluations without a better one end it.
    assert runs.metrics("scripted", "eval/exact_match") == {1: 0.4, 2: 0.7, 3: 0.7, 4: 0.5, 5: 0.6}
    assert runs.metrics("scripted", "eval/ned")[3] == pytest.approx(0.75)
    best, newest = find_checkpoint(run_dir / "best"), find_checkpoint(run_dir)
    assert (best.name, newest.name) == ("checkpoint-3", "checkpoint-5")
    assert {path.name for path in run_dir.glob("checkpoint-*")} == {best.name, newest.name}  # keep=1, and the best
    extra = read_trainer_state(newest).extra
    assert (extra["best_score"], extra["best_update"], extra["evaluations_since_best"]) == (0.7, 3, 2)
    assert "no better spelling than at update 3 in 2 evaluations (eval.patience): the run ends" in results[0].stdout

    artifacts = [json.loads(line) for line in (run_dir / "artifacts.jsonl").read_text().splitlines()]
    handed = {(a["folder"], Path(a["path"]).parent.name) for a in artifacts if a["path"].endswith(".safetensors")}
    assert handed == {("model", "checkpoint-5"), ("best", "checkpoint-3")}

    before = (run_dir / "metrics.jsonl").read_bytes()
    again = run_ranks(1, train_with_scripted_readings, command)  # the same command: it has ended, and stays so
    assert returned(again) == [0]
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.process
def test_a_run_killed_before_its_best_was_marked_marks_it(runs: TrainingFolder) -> None:
    command = runs.argv("marked", *SMALL, "train.max_steps=2", "eval.every=1", "eval.samples=4")
    returned(run_ranks(1, train_with_scripted_readings, command))
    (runs.run_dir("marked") / "best").write_text("checkpoint-1\n0.4\n")
    returned(run_ranks(1, train_with_scripted_readings, [*command, "train.max_steps=3"]))
    assert find_checkpoint(runs.run_dir("marked") / "best").name == "checkpoint-3"


def weights_of_last_validation(argv: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights that the pictures of the last evaluation were drawn with, and those after it, by parameter."""
    seen: dict[str, torch.Tensor] = {}
    original = validation.SpellingValidation._read

    def read(self: validation.SpellingValidation, progress: Progress) -> dict[str, float]:
        seen.update({name: p.detach().clone() for name, p in self._engine.params})
        return original(self, progress)

    validation.SpellingValidation._read = read  # type: ignore[method-assign]
    after: dict[str, torch.Tensor] = {}
    after_run(lambda trainer: after.update({name: p.detach().clone() for name, p in trainer.engine.params}))
    assert train.main(argv) == 0
    return seen, after


@pytest.mark.process
def test_what_is_read_is_the_average_that_is_kept_and_ranks_share_the_reading(runs: TrainingFolder) -> None:
    """With the real OCR engine and pictures of the `val` part."""
    pytest.importorskip("rapidocr_onnxruntime")
    changes = ("train.max_steps=2", "eval.every=2", "data.split=[0.7,0.2,0.1]")
    started = {
        world: start_ranks(world, weights_of_last_validation, runs.argv(f"real{world}", *SMALL, *changes))
        for world in (1, 3)
    }
    results = {world: one.wait() for world, one in started.items()}
    found = {}
    for world, ranks in results.items():
        seen, after = returned(ranks)[0]
        run_dir = runs.run_dir(f"real{world}")
        kept, _ = read_adapter(find_checkpoint(run_dir))
        for (name, weight), stored in zip(sorted(seen.items()), (kept[name] for name in sorted(kept)), strict=True):
            torch.testing.assert_close(weight, stored)
            assert not torch.equal(weight, after[name]), "and afterwards training goes on with its own weights"
        names = ("ned", "exact_match", "structure", "exact_match_latin", "exact_match_chinese")
        found[world] = [runs.metrics(run_dir.name, f"eval/{name}")[2] for name in names]
        assert "held-out pictures every 2 updates" in ranks[0].stdout, all_output(ranks)
    assert all(0.0 <= value < 1.0 for value in found[1]) and found[1] == pytest.approx(found[3], abs=1e-6)
    assert found[1][2] > 0.0, "the strokes of an untrained student still lie somewhere"


def test_scores_are_over_the_lines_that_say_something() -> None:
    sums = dict.fromkeys(validation.SUMS, 0.0)
    lines = [("Sea", "Latin", "Sea", 0.5), ("Sand", "Latin", "Sane", None), ("海", "Chinese", "海", 0.75)]
    for text, language, read, structure in [*lines, ("바다", "Korean", "바다", 1.0)]:
        strokes = None if structure is None else LineStructure(structure, structure)
        validation._add_line(sums, TextLine(text, np.zeros((4, 2)), language, None), read, strokes)
    assert validation._scores(sums) == {
        "eval/exact_match": 3 / 4,
        "eval/ned": 3.75 / 4,
        "eval/structure": 2.25 / 3,
        "eval/exact_match_latin": 1 / 2,
        "eval/exact_match_chinese": 1.0,
    }
    assert set(validation._scores(dict.fromkeys(validation.SUMS, 0.0) | {"lines": 1.0})) == {
        "eval/exact_match",
        "eval/ned",
    }


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.sources=[x.json]", "data.part=all", "eval.every=2"], "data.part=all holds nothing out.*eval.data"),
        (["objective={name: denoise}", "eval.every=2"], "denoise trains no student"),
    ],
)
def test_what_cannot_be_judged_is_named(tmp_path: Path, changes: list[str], words: str) -> None:
    recipe = load_recipe(DEFAULT_RECIPE, [change for change in changes if not change.startswith("objective")])
    if any(change.startswith("objective") for change in changes):
        recipe = replace(recipe, objective={"name": "denoise"})
    with pytest.raises(ValueError, match=words):
        make(recipe)


def make(recipe: Recipe) -> validation.Validation:
    """Without a model: what is asked for is checked before anything is sampled."""
    engine: Any = SimpleNamespace(world=World(0, 0, 1, torch.device("cpu")))
    nothing: Any = None
    return validation.make_validation(recipe, validation.open_ocr(recipe), nothing, nothing, nothing, engine, nothing)


def judged(patience: int) -> validation.SpellingValidation:
    recipe = Recipe(eval=EvalConfig(every=1, patience=patience), objective={"name": "phased"})
    nothing: Any = None
    return validation.SpellingValidation(recipe, [], nothing, nothing, nothing, nothing, nothing)


def test_hits_come_first_and_near_misses_decide_between_equals() -> None:
    progress = Progress()
    for update, found, best in [(1, (0.5, 0.6), 1), (2, (0.5, 0.7), 2), (3, (0.4, 0.9), 2), (4, (0.5, 0.7), 2)]:
        progress.updates = update
        assert not judged(patience=2).is_out_of_patience(progress)
        progress.keep_best(*found)
        assert progress.best_update == best
    assert judged(patience=2).is_out_of_patience(progress)
    assert not judged(patience=0).is_out_of_patience(progress)


def test_without_evaluations_nothing_is_due() -> None:
    validation_ = make(Recipe(eval=EvalConfig(every=0)))
    assert not validation_.is_due(5, last=True) and not validation_.is_out_of_patience(Progress())
