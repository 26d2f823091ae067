"""Trainings of the mini model: the recipe, the folder that holds data and run folders, the command, its results."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.checkpoint.formats import read_adapter, read_optimizer
from distill.checkpoint.store import find_checkpoint
from distill.tracking.metric_names import LOSS, read_metrics
from launch import train
from tests.helpers.models.mini_model import write_mini
from tests.helpers.paths import ROOT
from tests.helpers.processes.ranks import RankResult, all_output

ZERO2 = ROOT / "ds_configs" / "zero2.json"
SMALL_BATCH = ["train.effective_batch=8", "train.micro_batch=4"]
OBJECTIVE = "{name: consistency, w_min: 2.0, w_max: 4.0, solver_steps: 10, teacher_interval: 100}"
RECIPE = f"""
name: mini
data:
  workers: 0
  options: {{resolution: 64, max_lines: 1}}
objective: {OBJECTIVE}
lora: {{rank: 2, alpha: 4}}
train: {{micro_batch: 8, learning_rate: 2.0e-3, warmup_steps: 4, weight_decay: 0.0, threads: 1}}
log: {{every: 1}}
tracking: {{enabled: false}}
"""


@dataclass(frozen=True)
class TrainingFolder:
    """recipe.yaml, the mini model's files, data/ and runs/. model: the overrides that choose the mini model."""

    folder: Path
    model: tuple[str, ...]

    @classmethod
    def create(cls, folder: Path, pictures: int, recipe: str = RECIPE) -> TrainingFolder:
        """Writes the recipe, the model and that many drawn pictures of 96 pixels."""
        write_dataset(folder / "data", pictures, SyntheticConfig(size=96), seed=4)
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        return cls(folder, tuple(write_mini(folder)))

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def data(self) -> Path:
        return self.folder / "data" / "data.json"

    def argv(self, name: str, *changes: str) -> list[str]:
        """Arguments of launch/train.py for a run of this name."""
        own = [*self.model, f"run_root={self.folder / 'runs'}", f"data.sources=[{self.data}]", f"name={name}"]
        return ["--deepspeed", str(ZERO2), "--config", str(self.recipe), *own, *changes]

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def metrics(self, name: str, key: str = LOSS) -> dict[int, float]:
        """Step -> value, from the run's own journal, of the lines that have it."""
        return {record["step"]: record[key] for record in read_metrics(self.run_dir(name)) if key in record}

    def damaged_data(self, name: str, every: int) -> str:
        """An override that chooses the same pictures, of which every `every`-th is missing or truncated."""
        folder = self.folder / name
        if not folder.exists():
            shutil.copytree(self.folder / "data", folder)
            for number, path in enumerate(sorted((folder / "imgs").iterdir())):
                if number % every == 0:
                    path.write_bytes(path.read_bytes()[:200]) if number % (2 * every) else path.unlink()
        return f"data.sources=[{folder / 'data.json'}]"


def train_command(argv: list[str]) -> None:
    """launch/train.py as a shell would run it: ends the process with its exit code."""
    raise SystemExit(train.main(argv))


def assert_one_error(results: list[RankResult], *words: str) -> None:
    """All ranks ended with 2 and together printed one error line, which has these words."""
    assert [r.exit_code for r in results] == [2] * len(results), all_output(results)
    errors = [line for r in results for line in r.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), all_output(results)
    assert not any("Traceback" in r.stderr for r in results), all_output(results)


def last_error_line(result: RankResult) -> str:
    return result.stderr.strip().splitlines()[-1]


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Adapter and optimizer state of a checkpoint as one flat dict: name or slot/name -> tensor."""
    flat = {f"{slot}/{n}": t for n, slots in read_optimizer(folder).items() for slot, t in slots.items()}
    return flat | read_adapter(folder)[0]


def last_tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """`checkpoint_tensors` of the run's last checkpoint, which must be that of update `step`."""
    folder = find_checkpoint(run_dir)
    assert folder.name == f"checkpoint-{step}"
    return checkpoint_tensors(folder)
