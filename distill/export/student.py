"""The student that is exported: its LoRA, its recipe, where its base weights are, and how it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytext2.model.anytext2 import AnyText2, build_model
from anytext2.model.config import load_model_config
from distill.adapter_files.lora_weights import LoraWeights
from distill.adapter_files.reader import is_lora, read_lora
from distill.checkpoint.formats import TRAINER_STATE, read_trainer_state
from distill.checkpoint.run_folder import RECIPE, recipe_of
from distill.checkpoint.store import MANIFEST, find_checkpoint
from distill.config.recipes import load_recipe
from distill.config.schema import Recipe
from distill.diffusion.samplers import TEACHER_SAMPLER, leading_timesteps, sampling_timesteps
from distill.diffusion.schedule import solver_grid
from distill.inference.exported.files import ExportedFile, is_exported
from distill.inference.model import make_schedule

SUMMARY, GRID = "summary.json", "grid.png"
SHOWN_STEPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Student:
    """weights: the LoRA. model: the network on the meta device. source: checkpoint folder or file.

    updates: of the training, None if unknown. run_dir: of the training run, None where there is none. evaluation: what
    launch/evaluate.py wrote of this checkpoint, None without.
    """

    weights: LoraWeights
    recipe: Recipe
    model: AnyText2
    source: Path
    updates: int | None = None
    run_dir: Path | None = None
    evaluation: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def steps(self) -> int:
        """The number of sampling steps where none is asked for."""
        return self.recipe.student.default_steps(self.recipe.eval.steps)

    def times(self) -> dict[int, list[int]]:
        """The timesteps that the student is sampled at, highest first, by number of steps."""
        student = self.recipe.student
        schedule = make_schedule(self.model.cfg)
        grid = solver_grid(student.options.grid, student.options.solver_steps, schedule)
        found = {}
        for n in sorted({*student.supported_steps(SHOWN_STEPS), self.steps}):
            times = leading_timesteps(n) if student.sampler == TEACHER_SAMPLER else sampling_timesteps(n, grid)
            found[n] = [int(t) for t in times]
        return found

    def headline(self) -> dict[str, Any] | None:
        """The row of the evaluation with the usual number of steps, or the student's last one."""
        rows = [row for row in (self.evaluation or {}).get("rows", ()) if row.get("role") == "student"]
        usual = [row for row in rows if row.get("steps") == self.steps]
        return (usual or rows or [None])[-1]


def read_student(path: Path, config: Path | None, overrides: Sequence[str]) -> Student:
    """The newest complete checkpoint of a run folder, `RUN/best`, a checkpoint-N, a PEFT folder, or a file with a LoRA.

    config, overrides: the recipe, where there is none beside the adapter. A checkpoint's adapter is the average of the
    weights where the training kept one. Raises ValueError in one line.
    """
    if is_exported(path):
        file = ExportedFile.open(path)
        if file.format != "lora":
            raise ValueError(f"{path}: is merged; name what it was merged from, a run folder or a LoRA")
        return _read(path, file.recipe(config, overrides), file.note)
    folder = path if path.is_dir() and is_lora(path) and not (path / MANIFEST).is_file() else find_checkpoint(path)
    if not is_lora(folder):
        raise ValueError(f"{folder}: holds no LoRA; launch/export_weights.py joins trained base weights")
    recipe_file = config or recipe_of(folder)
    if recipe_file is None:
        raise ValueError(f"{folder}: there is no {RECIPE} beside it; name the recipe of its training with --config")
    return _read(folder, load_recipe(recipe_file, overrides))


def _read(source: Path, recipe: Recipe, note: Mapping[str, Any] | None = None) -> Student:
    if recipe.objective_config.student is None:
        raise ValueError(f"{source}: objective {recipe.objective['name']} trains no student, so no times are known")
    model = build_model(load_model_config(recipe.model.config), "meta")
    weights = read_lora(source, model)
    state = source / TRAINER_STATE
    updates = read_trainer_state(source).step if state.is_file() else (note or {}).get("updates")
    run_dir = source.parent if (source.parent / RECIPE).is_file() else None
    return Student(weights, recipe, model, source, updates, run_dir, _evaluation(run_dir, source))


def _evaluation(run_dir: Path | None, checkpoint: Path) -> dict[str, Any] | None:
    """The run's last evaluation, if it is one of this checkpoint."""
    if run_dir is None or not (run_dir / SUMMARY).is_file():
        return None
    try:
        content = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{run_dir / SUMMARY}: not valid JSON: {error}; measure again or remove it") from error
    same = isinstance(content, dict) and Path(str(content.get("checkpoint"))).name == checkpoint.name
    return content if same else None
