"""What of a training session goes into a checkpoint, and how it comes back.

    checkpoint-N/adapter_*           the student, in PEFT format (where a LoRA is trained)
    checkpoint-N/model.safetensors   the trained weights by official name (where the weights themselves are trained)
    checkpoint-N/optimizer.safetensors, trainer_state.json   what resume needs

Where an average of the weights is kept (train.ema_decay), the first two hold the average.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from distill import checkpoint
from distill.student import lora_config

if TYPE_CHECKING:
    from distill.config import Recipe
    from distill.engine import Engine
    from distill.trainer import Progress, Session

MODEL_WEIGHTS = "model.safetensors"


def save(session: Session) -> None:
    """Writes checkpoint-N for the session's update count; every rank takes part in gathering, rank 0 writes."""
    engine, progress, recipe = session.engine, session.progress, session.recipe
    state = engine.full_state()
    if engine.world.is_main:
        trainer_state = checkpoint.TrainerState(
            step=progress.updates,
            batches=progress.batches,
            seed=recipe.seed,
            effective_batch=recipe.train.effective_batch,
            skipped_steps=progress.skipped_updates,
            loss_scaler=engine.scaler_state(),
            tracking_run_id=session.tracker.run_id if session.tracker else "",
            extra={"n_samples": len(session.dataset), "unreadable": dict(progress.unreadable)},
        )

        def write(folder: Path) -> None:
            _write_weights(folder, session, state)
            checkpoint.write_optimizer(folder, state)
            checkpoint.write_trainer_state(folder, trainer_state)

        path = checkpoint.save_checkpoint(recipe.run_dir, progress.updates, write, recipe.checkpoint.keep)
        print(f"checkpoint: {path}", flush=True)
    engine.barrier()


def _write_weights(folder: Path, session: Session, state: dict[str, dict[str, torch.Tensor]]) -> None:
    weights = {name: slots.get("ema", slots["master"]) for name, slots in state.items()}
    wrapped = session.roles.wrapped
    if isinstance(wrapped, PeftModel):
        checkpoint.write_adapter(folder, weights, lora_config(wrapped), session.recipe.model.config)
    else:
        buffers = {
            name: value.detach().float().cpu().contiguous()
            for name, value in session.roles.model.named_buffers()
            if name.startswith(tuple({f"{n.split('.')[0]}." for n in weights})) and "running_" in name
        }
        save_file(weights | buffers, folder / MODEL_WEIGHTS)


def deliverables(session: Session) -> list[Path]:
    """What a finished run hands over: the newest checkpoint's weights, without what only resume needs."""
    folder = session.recipe.run_dir / f"checkpoint-{session.progress.updates}"
    names = (checkpoint.ADAPTER_CONFIG, checkpoint.ADAPTER_WEIGHTS, MODEL_WEIGHTS)
    return [folder / name for name in names if (folder / name).is_file()]


def _load_statistics(module: nn.Module, weights: Path) -> None:
    """Batch norm's running statistics, which are trained without being parameters."""
    if not weights.is_file():
        return
    buffers = dict(module.named_buffers())
    for name, value in checkpoint.load_tensors(weights).items():
        if "running_" in name:
            buffers[f"net.{name}"].copy_(value)


def resume_from(recipe: Recipe) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    Raises ValueError where the run folder holds checkpoints that `checkpoint.resume: never` would overwrite.
    """
    wish = recipe.checkpoint.resume
    if wish == "auto":
        if not any(recipe.run_dir.glob("checkpoint-*")):
            return None
        return checkpoint.find_checkpoint(recipe.run_dir)
    if wish == "never":
        if any(recipe.run_dir.glob("checkpoint-*")):
            raise ValueError(
                f"{recipe.run_dir}: holds checkpoints and checkpoint.resume=never; "
                "choose another name=... or remove the folder"
            )
        return None
    return checkpoint.find_checkpoint(Path(wish))


def load(folder: Path, recipe: Recipe, engine: Engine, n_samples: int) -> tuple[Progress, str]:
    """Puts the checkpoint into the engine; returns the counters and the tracking run to continue. Collective."""
    from distill.trainer import Progress

    state = checkpoint.read_trainer_state(folder)
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
    engine.load_full_state(checkpoint.read_optimizer(folder, {name: p.shape for name, p in engine.params}))
    _load_statistics(engine.module, folder / MODEL_WEIGHTS)
    engine.load_scaler_state(state.loss_scaler)
    progress = Progress(
        updates=state.step,
        batches=state.batches,
        skipped_updates=state.skipped_steps,
        unreadable=Counter(state.extra.get("unreadable", {})),
    )
    return progress, state.tracking_run_id
