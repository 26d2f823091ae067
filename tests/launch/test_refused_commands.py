"""A command that is refused leaves every byte and every time of the run folders as they were, and makes no new one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distill.checkpoint.run_folder import RECIPE
from distill.checkpoint.store import find_checkpoint
from distill.config.recipes import load_recipe
from distill.inference.loading import load_sampling_model
from distill.training.engine import init_world
from launch import demo, evaluate, export, infer, sync_tracking, train
from tests.helpers.processes.ranks import all_output, returned, run_ranks
from tests.helpers.processes.training_runs import SMALL_BATCH, TrainingFolder, assert_one_error, train_command

pytestmark = pytest.mark.process

LAST = 2
USUAL = [*SMALL_BATCH, f"train.max_steps={LAST}", "data.part=all", "checkpoint.save_steps=1"]
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train.main,
    "infer": infer.main,
    "demo": demo.main,
    "evaluate": evaluate.main,
    "export": export.main,
    "sync": sync_tracking.main,
}

TRAIN = {
    # what a resume would learn otherwise
    "objective.name=x0_regression": "objective.name: consistency -> x0_regression",
    "objective.solver_steps=20 objective.w_max=5.0": "objective.w_max: 4.0 -> 5.0; objective.solver_steps: 10 -> 20",
    "objective.terms.focal_frequency.weight=0.1": "objective.terms.focal_frequency.weight: None -> 0.1",
    "train.learning_rate=1e-4": "'checkpoint.allow=[train.learning_rate]'",
    "train.learning_rate=1e-4 seed=5 checkpoint.allow=[train]": "seed: 0 -> 5; the order of samples would change",
    "train.effective_batch=16": "train.effective_batch: 8 -> 16; the order of samples would change",
    "train.schedule=cosine train.max_steps=9": "train.schedule: constant -> cosine",
    "lora.rank=3": "lora.rank: 2 -> 3; a trained adapter keeps its lora.rank",
    "lora.alpha=8 checkpoint.allow=[lora]": "lora_alpha=4, the recipe has lora.alpha=8",
    "lora.targets=all": "lora.targets: paper -> all",
    "lora.targets=all checkpoint.allow=[lora.targets]": "parameters missing",
    "train.optimizer=prodigy train.learning_rate=1.0 checkpoint.allow=[train]": "another train.optimizer than prodigy",
    "data.options.resolution=128": "data.options.resolution: 64 -> 128",
    "data.sources=[]": "data.sources: ",
    # what cannot be
    "train.stepz=1": "train.stepz",
    "train.micro_batch=3": "micro_batch=3",
    "objective.name=nope": "objective.name='nope'",
    "name=../mine": "must name one folder",
    "checkpoint.allow=[trian]": "checkpoint.allow: 'trian'",
    "checkpoint.resume=never": "checkpoint.resume=never",
    "data.sources=[none.json] checkpoint.allow=[data]": "none.json: annotation file does not exist",
    "model.weights=none.ckpt checkpoint.allow=[model]": "none.ckpt: no such weights file",
    "data.cache=none.lmdb": "there is no feature cache",
    "eval.every=1 eval.data=[none.json]": "none.json: annotation file does not exist",
    "lora.targets=cond_stage_model\\..*": "outside of UNet and WriteNet",
    "--deepspeed none.json": "none.json",
    "--config none.yaml": "none.yaml: no such file",
    # in a folder that is not there yet
    "name=new checkpoint.resume=nowhere": "nowhere: no such folder",
    "name=new lora.weights=none": "lora.weights=none: no adapter_model.safetensors",
    "name=new model.weights=none.ckpt": "none.ckpt: no such weights file",
    "name=new data.sources=[] data.synthetic.count=1 data.synthetic.size=96 data.part=test": "data.part=test",
    "name=new data.sources=[] data.synthetic.size=64": "64 pixels are too few",
    "name=new checkpoint.resume=RUN seed=5": "seed: 0 -> 5",
    "run_root=RUN/recipe.yaml": "cannot be written (Not a directory)",
}
OTHERS = {
    "infer --checkpoint RUN --data DATA --student-guidance 0.5": "guidance=0.5 must be at least 1",
    "infer --checkpoint RUN --data DATA objective.name=phased": "objective.name: consistency -> phased; leave out",
    "infer --checkpoint RUN --data DATA --device cuda:99": "--device cuda:99",
    "infer --checkpoint RUN --data DATA --steps 99": "99",
    "infer --checkpoint RUN --data DATA --out RUN/recipe.yaml": "recipe.yaml",
    "infer --checkpoint RUN --data none.json": "none.json: annotation file does not exist",
    "infer --checkpoint RUN --prompts none.jsonl": "none.jsonl: No such file",
    'infer --checkpoint RUN --prompt "GO" --font none': "font none: neither a file nor one of",
    "evaluate --checkpoint RUN --prompts none.jsonl": "--prompts none.jsonl: no such file",
    "evaluate --checkpoint RUN --no-ocr --data DATA --student-steps 99": "99",
    "evaluate --checkpoint RUN --no-ocr --first 9 --count 2 data.sources=[]": "--first 9",
    "evaluate --checkpoint RUN --no-ocr --data DATA objective.solver_steps=20": "objective.solver_steps: 10 -> 20",
    "export RUN --format kohya --out RUN/recipe.yaml/x.safetensors": "recipe.yaml is a file",
    "export RUN --format merged --out RUN/x.bin": "ends in .safetensors or .ckpt",
    "export RUN --format merged --out RUN/x.ckpt model.weights=none.ckpt": "none.ckpt: no such weights file",
    "export RUN/recipe.yaml --format peft --out RUN/peft": "recipe.yaml: not a readable weights file: text",
    "demo --checkpoint RUN --out RUN/recipe.yaml": "recipe.yaml is a file",
    "demo --checkpoint RUN --out RUN/page --port 99999": "--port 99999: no port has this number",
    "demo --checkpoint none --out RUN/page --port 0": "none: no such folder",
    "demo --checkpoint RUN --out RUN/page --port 0 --translate klingon": "translate: 'klingon' is not known",
    "sync RUN/checkpoint-2": "no journals here",
    "sync RUN --timeout 0": "--timeout 0",
}


@dataclass(frozen=True)
class Refusal:
    """What a command said, and the paths in the folder that it changed."""

    exit_code: int
    error: str
    changed: list[str]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> time of the last change and content of everything in the folder; folders have no content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def refuse_all(folder: Path, commands: list[list[str]]) -> list[Refusal]:
    """All commands in this process, one after the other."""
    world: Any = init_world(-1, 1)
    train.init_world = lambda *_: world
    train.shutdown = lambda: None
    refusals: list[Refusal] = []
    for command, *argv in commands:
        before, said = snapshot(folder), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                exit_code = COMMANDS[command](argv)
            except (Exception, SystemExit) as error:  # a traceback, or the usage of a command
                exit_code = 1
                print(repr(error), file=said)
        after = snapshot(folder)
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        refusals.append(Refusal(exit_code, said.getvalue(), changed))
    return refusals


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    runs = TrainingFolder.create(tmp_path_factory.mktemp("refused"), 9)
    returned(run_ranks(1, train_command, runs.argv("mine", *USUAL)))
    return runs


@pytest.fixture(scope="module")
def refusals(runs: TrainingFolder) -> dict[str, Refusal]:
    run_dir = str(runs.run_dir("mine"))
    places = {"RUN": run_dir, "DATA": str(runs.data)}

    def placed(words: str) -> list[str]:
        return [word.replace("RUN", places["RUN"]).replace("DATA", places["DATA"]) for word in words.split()]

    training = [["train", *runs.argv("mine", *USUAL), *placed(change)] for change in TRAIN]
    other = [placed(words) for words in OTHERS]
    (found,) = returned(run_ranks(1, refuse_all, runs.folder / "runs", [*training, *other]))
    return dict(zip([*TRAIN, *OTHERS], found, strict=True))


@pytest.mark.parametrize("command", [*TRAIN, *OTHERS])
def test_a_refused_command_changes_nothing(refusals: dict[str, Refusal], command: str) -> None:
    refusal = refusals[command]
    assert refusal.exit_code == 2, refusal
    assert refusal.error.startswith("error: ") and refusal.error.count("\n") == 1, refusal
    assert {**TRAIN, **OTHERS}[command] in refusal.error
    assert refusal.changed == []


def test_real_ranks_change_nothing_either(runs: TrainingFolder) -> None:
    before = snapshot(runs.folder / "runs")
    results = run_ranks(2, train_command, runs.argv("mine", *USUAL, "objective.name=x0_regression"))
    assert_one_error(results, "objective.name: consistency -> x0_regression", "checkpoint.allow=[objective.name")
    assert snapshot(runs.folder / "runs") == before


def test_what_is_allowed_goes_on_and_each_checkpoint_keeps_its_recipe(
    runs: TrainingFolder, refusals: dict[str, Refusal]
) -> None:
    change = ["train.max_steps=3", "objective.w_max=5.0", "train.learning_rate=1e-4", "train.effective_batch=4"]
    allow = "checkpoint.allow=[objective,train.learning_rate,train.effective_batch]"
    results = run_ranks(1, train_command, runs.argv("mine", *USUAL, *change, allow, "checkpoint.keep=9"))
    returned(results)
    assert "on with another recipe: objective.w_max: 4.0 -> 5.0; train" in results[0].stdout, all_output(results)
    run_dir = runs.run_dir("mine")
    assert find_checkpoint(run_dir).name == "checkpoint-3"
    ranges = [load_recipe(run_dir / f"checkpoint-{n}" / RECIPE).objective["w_max"] for n in (1, 2, 3)]
    assert ranges == [4.0, 4.0, 5.0]
    for number, scale in ((2, 5.0), (3, 6.0)):
        opened = load_sampling_model(run_dir / f"checkpoint-{number}", None, (), "fp32", "cpu")
        assert opened.recipe.student.guidance == (3.0, scale)
    # the same command without the list: there is nothing to allow any more
    argv = runs.argv("mine", *USUAL, *change, "checkpoint.keep=9", "train.max_steps=4")
    returned(run_ranks(1, train_command, argv))
    # another run may begin with it, and says what it does otherwise
    begun = run_ranks(
        1,
        train_command,
        runs.argv("other", *USUAL, *change, f"checkpoint.resume={run_dir}", "lora.dropout=0.1", "train.max_steps=5"),
    )
    returned(begun)
    assert "on with another recipe: lora.dropout: 0.0 -> 0.1" in begun[0].stdout, all_output(begun)
