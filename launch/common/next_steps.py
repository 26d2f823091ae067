"""What a finished run prints: where its results are, and the next two commands."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from anytext2.core.resources import shell_command
from distill.checkpoint.run_folder import RECIPE
from distill.config.schema import Recipe
from distill.tracking.links import server_command
from distill.tracking.tracker import Tracker
from distill.training.null_objects import NullTracker
from distill.training.state import Progress
from distill.training.trainer import Trainer


def closing_lines(trainer: Trainer) -> list[str]:
    """The last lines of a finished run."""
    recipe, progress = trainer.recipe, trainer.progress
    lines = [f"results: {'; '.join(_results(recipe, progress))}"]
    if isinstance(trainer.tracker, Tracker) and trainer.tracker.run_id:
        lines[0] += f"; MLflow run {trainer.tracker.run_id} in {trainer.tracker.uri}"
        lines += mlflow_lines(trainer.tracker)
    return [*lines, *(f"next: {command}" for command in next_commands(recipe))]


def mlflow_lines(tracker: Tracker | NullTracker) -> list[str]:
    """One line with the address of the run's curves in a browser, and how to serve it where the store is a file."""
    if not tracker.page:
        return []
    serve = server_command(tracker.uri) if isinstance(tracker, Tracker) else ""
    return [f"MLflow: {tracker.page}" + (f" (served by: {serve})" if serve else "")]


def _results(recipe: Recipe, progress: Progress) -> list[str]:
    folder = recipe.run_dir
    found = {"checkpoint": folder / f"checkpoint-{progress.updates}"}
    if progress.best_update not in (None, progress.updates):
        found["best"] = folder / f"checkpoint-{progress.best_update}"
    found |= {"curves": folder / "metrics.jsonl", "previews": folder / "previews", "inputs": folder / "audit.png"}
    return [f"{name} {path}" for name, path in found.items() if path.exists()]


def next_commands(recipe: Recipe) -> list[str]:
    """Two commands for a shell: see what was trained, then measure it, or look at its curves or data."""
    run = recipe.run_dir
    if recipe.objective_config.student is None:  # trained base weights
        base = ["--config", recipe.model.config, "--weights", recipe.model.weights]
        parts = ["--parts", *recipe.model.parts, run]
        export = shell_command("launch/export_weights.py", *base, *parts, "--out", run / "weights.safetensors")
        return [export, _look(recipe)]
    first = shell_command("launch/infer.py", "--run", run, "--out", run / "pictures")
    if recipe.data.sources and not recipe.eval.data:  # which other pictures are held out, only their owner knows
        return [first, _look(recipe)]
    data = [word for file in recipe.eval.data for word in ("--data", file)]
    no_ocr = [] if find_spec("rapidocr_onnxruntime") else ["--no-ocr"]
    return [first, shell_command("launch/evaluate.py", "--run", run, *data, "--count", 48, *no_ocr)]


def _look(recipe: Recipe) -> str:
    """At the curves, where they are on this machine, else at the data."""
    if recipe.tracking.enabled and not recipe.tracking.uri:
        return server_command(f"sqlite:///{Path(recipe.run_root) / 'mlflow.db'}")
    sources = recipe.data.sources or [str(recipe.run_dir / "data" / "data.json")]
    recipe_file = recipe.run_dir / RECIPE
    return shell_command("launch/show_dataset.py", *sources, "--config", recipe_file, "--out", recipe.run_dir / "sheet")
