"""Where a run goes on, whether its recipe may, and the checkpoint's content put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from distill.adapters.warm_start import is_adapter_folder, require_same_adapter
from distill.checkpoint import formats, store
from distill.checkpoint.formats import MODEL_WEIGHTS
from distill.checkpoint.run_folder import recipe_of
from distill.config.differences import (
    LEARNED_IN_SCHEDULES,
    OF_OPTIMIZER,
    Difference,
    is_in,
    learned_differences,
    recipe_values,
)
from distill.config.recipes import load_recipe
from distill.config.schema import Recipe
from distill.training.engine import Engine
from distill.training.state import Progress, Restored, from_trainer_state

State = dict[str, dict[str, torch.Tensor]]

OF_ORDER = ("seed", "train.effective_batch")
"""Keys that decide which samples a batch holds. A checkpoint's counters say how many batches are done."""

OF_ADAPTER = ("lora.kind", "lora.rank", "lora.alpha")
"""Keys that a trained adapter cannot change."""


def _load_batch_norm_statistics(module: nn.Module, weights: Path) -> None:
    """Running statistics are trained without being parameters."""
    if not weights.is_file():
        return
    buffers = dict(module.named_buffers())
    for name, value in formats.read_tensors(weights).items():
        if "running_" in name:
            buffers[f"net.{name}"].copy_(value)


def resume_from(recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    A run that was started from another one's checkpoint goes on from its own as soon as it has any: the same command
    continues it. Raises ValueError where the run folder holds checkpoints that `checkpoint.resume: never` would
    overwrite.
    """
    resume, run_dir = recipe.checkpoint.resume, recipe.run_dir
    has_own = any(run_dir.glob("checkpoint-*"))
    if resume == "never":
        if has_own:
            raise ValueError(
                f"{run_dir}: holds checkpoints and checkpoint.resume=never; "
                "choose another name=... or remove the folder"
            )
        return None
    if resume == "auto":
        return store.find_checkpoint(run_dir) if has_own else None
    if has_own and not _is_own(Path(resume), run_dir):
        print(f"{run_dir} has checkpoints of its own: checkpoint.resume={resume} was only its start", flush=True)
        return store.find_checkpoint(run_dir)
    try:
        return store.find_checkpoint(Path(resume))
    except store.CheckpointError as error:
        if is_adapter_folder(Path(resume)):
            raise ValueError(f"{error}; to start from the adapter in it give lora.weights={resume}") from error
        raise


def _is_own(folder: Path, run_dir: Path) -> bool:
    return folder.resolve().is_relative_to(run_dir.resolve())


def check_resume(folder: Path, recipe: Recipe) -> None:
    """Says what differs between the checkpoint's recipe and this one. Reads small files only.

    Raises ValueError where this run's own checkpoint was trained with another recipe, unless checkpoint.allow names the
    differences. Another run's checkpoint is a start for something new: only the order of samples must be the same,
    because its counters go on, and the adapter's shape.
    """
    state, own = formats.read_trainer_state(folder), _is_own(folder, recipe.run_dir)
    found = [d for d in _differences(folder, recipe, state) if not d.is_moved]
    allowed = (*recipe.checkpoint.allow, *LEARNED_IN_SCHEDULES)
    allowed += () if recipe.checkpoint.resume_optimizer else OF_OPTIMIZER
    refused = [d for d in found if (own or d.key in OF_ORDER) and not is_in(d.key, allowed)]
    if refused:
        raise ValueError(f"{folder}: trained with another recipe: {'; '.join(map(str, refused))}; {_remedy(refused)}")
    if (folder / formats.ADAPTER_CONFIG).is_file():
        require_same_adapter(folder / formats.ADAPTER_CONFIG, recipe.lora)
    if found:
        print(f"from {folder} on with another recipe: {'; '.join(map(str, found))}", flush=True)


def _differences(folder: Path, recipe: Recipe, state: formats.TrainerState) -> list[Difference]:
    """What is learned otherwise from here on. A checkpoint without any recipe tells its seed and batch alone."""
    new, file = recipe_values(recipe), recipe_of(folder)
    old = new if file is None else recipe_values(load_recipe(file))
    return learned_differences(old | dict(zip(OF_ORDER, (state.seed, state.effective_batch), strict=True)), new)


def _remedy(refused: list[Difference]) -> str:
    keys = [d.key for d in refused]
    consequence = "the order of samples would change; " if set(keys) & set(OF_ORDER) else ""
    if fixed := [key for key in keys if key in OF_ADAPTER]:
        return f"{consequence}a trained adapter keeps its {fixed[0]}: give the old values or another name=..."
    return (
        f"{consequence}give the old values or another name=..., or go on with the new ones by "
        f"'checkpoint.allow=[{','.join(keys)}]'"
    )


def restore(folder: Path, recipe: Recipe, engine: Engine) -> Restored:
    """Puts the checkpoint into the engine; returns everything of it that is no tensor. Collective.

    Raises ValueError where parameters or optimizer differ from the recipe's. `check_resume` comes first.
    """
    state = formats.read_trainer_state(folder)
    reset, restart = _optimizer_restart(folder, recipe, state)
    tensors = formats.read_optimizer(folder, {name: p.shape for name, p in engine.params})
    if not reset:
        _require_same_optimizer(folder, recipe, engine, tensors)
    engine.load_full_state(tensors, moments=not reset)
    _load_batch_norm_statistics(engine.module, folder / MODEL_WEIGHTS)
    if not reset:
        engine.load_scaler_state(state.loss_scaler)
    if restart is not None and engine.world.is_main:
        since = "starts afresh" if reset else f"goes on, after its fresh start at update {restart}"
        print(f"checkpoint.resume_optimizer=false: the optimizer {since}", flush=True)
    restored = from_trainer_state(state)
    restored.progress.optimizer_restart = restart
    if state.effective_batch == recipe.train.effective_batch:
        return restored
    # Allowed by checkpoint.allow: the stream goes on after as many samples, in batches of the new size.
    batches = state.batches * state.effective_batch // recipe.train.effective_batch
    restored.progress.batches = restored.progress.saved_batches = batches
    return replace(restored, metrics=())


def check_samples(folder: Path, restored: Restored, n_samples: int) -> None:
    """Warns where the checkpoint was made on another number of samples."""
    if restored.n_samples != n_samples:
        print(
            f"warning: {folder} was made on {restored.n_samples} samples, there are {n_samples} now: "
            "the order of samples changes from here on",
            flush=True,
        )


def mark_best(folder: Path, recipe: Recipe, progress: Progress) -> None:
    """Marks the checkpoint as the best one, where a run was killed just before it did."""
    if progress.is_best and _is_own(folder, recipe.run_dir):
        assert progress.best_score is not None
        store.mark_best(recipe.run_dir, folder.name, progress.best_score)


def _require_same_optimizer(folder: Path, recipe: Recipe, engine: Engine, state: State) -> None:
    found = set(next(iter(state.values()))) - {"master", "ema"}
    if found != engine.optimizer_slots:
        raise store.CheckpointError(
            f"{folder}: made with another train.optimizer than {recipe.train.optimizer} (it holds "
            f"{', '.join(sorted(found))}); set that, or checkpoint.resume_optimizer=false"
        )


def _optimizer_restart(folder: Path, recipe: Recipe, state: formats.TrainerState) -> tuple[bool, int | None]:
    """Whether the optimizer is reset now, and at which update `checkpoint.resume_optimizer: false` reset it.

    Once only: the same command, given again after an interruption, must not forget the moments every time.
    """
    if recipe.checkpoint.resume_optimizer:
        return False, None
    before: int | None = state.extra.get("optimizer_restart") if _is_own(folder, recipe.run_dir) else None
    return before is None, state.step if before is None else before
