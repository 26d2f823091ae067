"""What of a training session goes into a checkpoint, and how it comes back.

    checkpoint-N/adapter_*           the student, in PEFT format (where a LoRA is trained)
    checkpoint-N/model.safetensors   the trained weights by official name (where the weights themselves are trained)
    checkpoint-N/optimizer.safetensors, trainer_state.json   what resume needs

Where an average of the weights is kept (train.ema_decay), the first two hold the average.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn

from distill.adapters.lora import adapter_of, lora_config
from distill.adapters.roles import STUDENT
from distill.adapters.warm_start import is_adapter_folder, require_same_adapter
from distill.checkpoint import formats, store
from distill.checkpoint.formats import MODEL_WEIGHTS

if TYPE_CHECKING:
    from distill.config.schema import Recipe
    from distill.training.engine import Engine
    from distill.training.trainer import Progress, Session

CARRIED = ("skipped_in_a_row", "best_score", "best_ned", "best_update", "evaluations_since_best", "optimizer_restart")
"""Fields of Progress that stand under their own names in TrainerState.extra."""

State = dict[str, dict[str, torch.Tensor]]


def save(session: Session) -> None:
    """Takes a snapshot of the session and lets rank 0 write it as checkpoint-N in the background. Collective.

    Returns as soon as training may go on; `finish` waits for the disk. Raises, on every rank, what went wrong in the
    writing of the checkpoint before, the disk's own errors apart.
    """
    engine, progress = session.engine, session.progress
    began = time.perf_counter()
    _wait(session)
    progress.saved_batches = progress.batches
    state = engine.full_state(keep=engine.world.is_main)
    shares = engine.gather(session.window.share() if session.window else {"batches": 0})
    if session.writer is not None:
        write = _snapshot(session, state, shares)
        waited = time.perf_counter() - began
        pace = session.window.seconds_per_batch if session.window else None
        updates = f", {waited / pace:.2f} of a step" if pace else ""
        best = progress.best_score if progress.best_update == progress.updates else None
        session.writer.submit(progress.updates, write, f"; training waited {waited:.2f} s{updates}", best)


def finish(session: Session) -> None:
    """Waits until the newest checkpoint is on the disk. Collective.

    Raises CheckpointError, on every rank, where it could not be written; otherwise as `save`.
    """
    _wait(session)
    failure = session.engine.gather(session.writer.last_failure if session.writer else "")[0]
    if failure:
        raise store.CheckpointError(
            f"{session.recipe.run_dir}: the last checkpoint could not be written ({failure}); make room and give the "
            "same command again: it goes on from the one before"
        )


def _wait(session: Session) -> None:
    """Until nothing is in flight. Raises the writer's error on every rank: none may go on alone."""
    error: Exception | None = None
    if session.writer is not None:
        try:
            session.writer.wait()
        except Exception as caught:
            error = caught
    told = session.engine.gather((isinstance(error, ValueError), str(error)) if error else None)[0]
    if error is not None:
        raise error
    if told is not None:
        raise ValueError(told[1]) if told[0] else RuntimeError(f"rank 0 failed to write its checkpoint: {told[1]}")


def _snapshot(session: Session, state: State, shares: list[dict[str, Any]]) -> Callable[[Path], None]:
    """A function that writes everything as it is now, whatever training does meanwhile."""
    engine, progress, recipe, wrapped = session.engine, session.progress, session.recipe, session.roles.wrapped
    assert session.writer is not None
    trainer_state = formats.TrainerState(
        step=progress.updates,
        batches=progress.batches,
        seed=recipe.seed,
        effective_batch=recipe.train.effective_batch,
        skipped_steps=progress.skipped_updates,
        loss_scaler=engine.scaler_state(),
        tracking_run_id=session.tracker.run_id if session.tracker else "",
        extra={
            "n_samples": session.order.length,
            "unreadable": dict(progress.unreadable),
            "open_window": shares if shares[0]["batches"] else [],
            "checkpoint_failures": session.writer.failures,
        }
        | {name: getattr(progress, name) for name in CARRIED},
    )
    trained = {name: slots for name, slots in state.items() if adapter_of(name) == STUDENT}
    weights = {name: slots.get("ema", slots["master"]) for name, slots in trained.items()}
    statistics = {} if isinstance(wrapped, PeftModel) else _statistics(session.roles.model, weights)

    def write(folder: Path) -> None:
        if isinstance(wrapped, PeftModel):
            formats.write_adapter(folder, weights, lora_config(wrapped), recipe.model.config)
        else:
            formats.write_tensors(folder / MODEL_WEIGHTS, weights | statistics)
        formats.write_optimizer(folder, state)
        formats.write_trainer_state(folder, trainer_state)

    return write


def _statistics(model: nn.Module, weights: Iterable[str]) -> dict[str, torch.Tensor]:
    """A copy of batch norm's running statistics in the parts that are trained."""
    parts = tuple({f"{name.split('.')[0]}." for name in weights})
    return {
        name: value.detach().to("cpu", torch.float32, copy=True)
        for name, value in model.named_buffers()
        if name.startswith(parts) and "running_" in name
    }


def deliverables(session: Session) -> dict[str, list[Path]]:
    """What a finished run hands over: the weights of the newest checkpoint, and of the one that spells best.

    By folder of the tracker: `model`, and `best` where anything was read. Without what only resume needs.
    """
    progress = session.progress
    updates = {"model": progress.updates} | ({} if progress.best_update is None else {"best": progress.best_update})
    names = (formats.ADAPTER_CONFIG, formats.ADAPTER_WEIGHTS, MODEL_WEIGHTS)
    found = {kind: [session.recipe.run_dir / f"checkpoint-{n}" / name for name in names] for kind, n in updates.items()}
    return {kind: [path for path in paths if path.is_file()] for kind, paths in found.items()}


def _load_statistics(module: nn.Module, weights: Path) -> None:
    """Batch norm's running statistics, which are trained without being parameters."""
    if not weights.is_file():
        return
    buffers = dict(module.named_buffers())
    for name, value in formats.read_tensors(weights).items():
        if "running_" in name:
            buffers[f"net.{name}"].copy_(value)


def resume_from(recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    A run that was started from another one's checkpoint goes on from its own as soon as it has any: the same command
    continues it. Raises ValueError where the run folder holds checkpoints that `store.resume: never` would
    overwrite.
    """
    wish, run_dir = recipe.checkpoint.resume, recipe.run_dir
    has_own = any(run_dir.glob("checkpoint-*"))
    if wish == "never":
        if has_own:
            raise ValueError(
                f"{run_dir}: holds checkpoints and store.resume=never; choose another name=... or remove the folder"
            )
        return None
    if wish == "auto":
        return store.find_checkpoint(run_dir) if has_own else None
    if has_own and not _is_own(Path(wish), run_dir):
        print(f"{run_dir} has checkpoints of its own: store.resume={wish} was only its start", flush=True)
        return store.find_checkpoint(run_dir)
    try:
        return store.find_checkpoint(Path(wish))
    except store.CheckpointError as error:
        if is_adapter_folder(Path(wish)):
            raise ValueError(f"{error}; to start from the adapter in it give lora.weights={wish}") from error
        raise


def _is_own(folder: Path, run_dir: Path) -> bool:
    return folder.resolve().is_relative_to(run_dir.resolve())


def load(folder: Path, recipe: Recipe, engine: Engine, n_samples: int) -> tuple[Progress, str]:
    """Puts the checkpoint into the engine; returns the counters and the tracking run to continue. Collective."""
    from distill.training.trainer import Progress

    state = formats.read_trainer_state(folder)
    for key, found, wanted in (
        ("seed", state.seed, recipe.seed),
        ("train.effective_batch", state.effective_batch, recipe.train.effective_batch),
    ):
        if found != wanted:
            raise ValueError(
                f"{folder}: made with {key}={found}, the recipe says {wanted}; the order of samples would change"
            )
    if state.extra.get("n_samples") != n_samples and engine.world.is_main:
        print(
            f"warning: {folder} was made on {state.extra.get('n_samples')} samples, there are {n_samples} now: "
            "the order of samples changes from here on",
            flush=True,
        )
    afresh, restart = _optimizer_start(folder, recipe, state)
    tensors = formats.read_optimizer(folder, {name: p.shape for name, p in engine.params})
    if (folder / formats.ADAPTER_CONFIG).is_file():
        require_same_adapter(folder / formats.ADAPTER_CONFIG, recipe.lora)
    if not afresh:
        _require_same_optimizer(folder, recipe, engine, tensors)
    engine.load_full_state(tensors, moments=not afresh)
    _load_statistics(engine.module, folder / MODEL_WEIGHTS)
    if not afresh:
        engine.load_scaler_state(state.loss_scaler)
    if restart is not None and engine.world.is_main:
        since = "starts afresh" if afresh else f"goes on, after its fresh start at update {restart}"
        print(f"checkpoint.resume_optimizer=false: the optimizer {since}", flush=True)
    progress = Progress(
        updates=state.step,
        batches=state.batches,
        skipped_updates=state.skipped_steps,
        saved_batches=state.batches,
        unreadable=Counter(state.extra.get("unreadable", {})),
        checkpoint_failures=state.extra.get("checkpoint_failures", 0),
        open_window=state.extra.get("open_window", []),
        **{name: state.extra[name] for name in CARRIED if name in state.extra},
    )
    progress.optimizer_restart = restart
    if engine.world.is_main and progress.best_update == progress.updates and _is_own(folder, recipe.run_dir):
        assert progress.best_score is not None
        store.mark_best(recipe.run_dir, folder.name, progress.best_score)  # killed just before it was marked
    return progress, state.tracking_run_id


def _require_same_optimizer(folder: Path, recipe: Recipe, engine: Engine, state: State) -> None:
    found = set(next(iter(state.values()))) - {"master", "ema"}
    if found != engine.optimizer_slots:
        raise store.CheckpointError(
            f"{folder}: made with another train.optimizer than {recipe.train.optimizer} (it holds "
            f"{', '.join(sorted(found))}); set that, or store.resume_optimizer=false"
        )


def _optimizer_start(folder: Path, recipe: Recipe, state: formats.TrainerState) -> tuple[bool, int | None]:
    """Whether the optimizer starts afresh now, and at which update `store.resume_optimizer: false` had it do so.

    Once only: the same command, given again after an interruption, must not forget the moments every time.
    """
    if recipe.checkpoint.resume_optimizer:
        return False, None
    before: int | None = state.extra.get("optimizer_restart") if _is_own(folder, recipe.run_dir) else None
    return before is None, state.step if before is None else before
