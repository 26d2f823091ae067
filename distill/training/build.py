"""From a recipe to a trainer: data, model, roles, engine, tracking, and the checkpoint to resume from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from peft import PeftModel
from torch import nn

from anytext2.core.batch import Contexts
from anytext2.data.dataset import AnyWordDataset
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.adapters.lora import adapter_of, adapter_parameters, add_adapter, add_student
from distill.adapters.roles import EMA, STUDENT, AdapterRoles
from distill.adapters.targets import lora_targets
from distill.adapters.warm_start import load_warm_start, read_warm_start
from distill.checkpoint.run_folder import RUN_INFO
from distill.checkpoint.run_lock import RunLock
from distill.checkpoint.writer import CheckpointWriter
from distill.config.recipes import dump_recipe
from distill.config.schema import Recipe
from distill.data.batch_sampler import BatchSampler
from distill.data.build import build_dataset
from distill.data.latents import LatentSource
from distill.data.loader import BatchSizes
from distill.data.splits import make_batch_sampler
from distill.diffusion.schedule import NoiseSchedule
from distill.inference.model import make_model, make_schedule, require_recognizer
from distill.objectives import OBJECTIVES
from distill.objectives.base import FullWeightObjective, Objective
from distill.objectives.teacher import StudentConfig
from distill.runtime.signals import StopRequests
from distill.runtime.world import World, on_main
from distill.tracking.tracker import Tracker, environment
from distill.training.checkpointing import Checkpoints, restore, resume_from
from distill.training.engine import Engine
from distill.training.inputs import MicroBatches, StepInputs
from distill.training.metrics import Gauge, MetricsLog, MetricsWindow
from distill.training.null_objects import NullTracker, NullWatchdog, NullWriter, RunTracker, RunWatchdog, RunWriter
from distill.training.previews import NullPreviews, Previews, SamplePreviews
from distill.training.sample_log import JournalSampleLog, NullSampleLog
from distill.training.state import Progress, Restored
from distill.training.step_guard import StepGuard
from distill.training.trainer import Trainer, TrainingStep
from distill.training.validation import make_validation


def make_objective(recipe: Recipe, schedule: NoiseSchedule) -> Objective:
    return OBJECTIVES[recipe.objective["name"]](recipe.objective_config, schedule)


def make_roles(
    model: AnyText2, objective: Objective, recipe: Recipe
) -> tuple[AdapterRoles, list[tuple[str, nn.Parameter]]]:
    """Freezes everything but what the objective trains; returns that by its name in checkpoints."""
    model.requires_grad_(False)
    if objective.trains == "lora":
        student = add_student(model, recipe.lora, recipe.seed)
        wrapped: nn.Module = student
        params = adapter_parameters(student, STUDENT)
        for second in objective.config.second_adapters:
            add_adapter(student, second.name, second.trained, recipe.seed)
            if second.trained:
                params += adapter_parameters(student, second.name)
    else:
        assert isinstance(objective, FullWeightObjective)
        wrapped, params = model, list(objective.trainable(model))
        for _, p in params:
            p.requires_grad_(True)
    return AdapterRoles(wrapped), params


def check_adapter(recipe: Recipe) -> None:
    """Raises ValueError where `lora.targets` does not fit the network; a second without weights tells."""
    if recipe.objective_config.student is not None:
        lora_targets(build_model(load_model_config(recipe.model.config), "meta"), recipe.lora.targets)


@dataclass(frozen=True)
class _Parts:
    """The network under the engine, its objective and its data."""

    objective: Objective
    schedule: NoiseSchedule
    roles: AdapterRoles
    engine: Engine
    dataset: AnyWordDataset
    sampler: BatchSampler
    info: dict[str, Any]


def make_trainer(
    recipe: Recipe,
    ds_config: dict[str, Any],
    world: World,
    stop: StopRequests | None = None,
    watchdog: RunWatchdog | None = None,
) -> Trainer:
    """Builds every part of a run and resumes where there is something to resume. Collective."""
    require_recognizer(recipe)
    plan = BatchSizes(recipe.train.effective_batch, recipe.train.micro_batch, world.size)
    on_main(world, lambda: check_adapter(recipe))
    locks: list[RunLock] = []  # rank 0's
    resume = on_main(world, lambda: _take_folder(recipe, locks))
    parts = _build_parts(recipe, ds_config, plan, world, warm_start=resume is None)
    restored = Restored(Progress())
    if resume is not None:
        restored = restore(resume, recipe, parts.engine, parts.sampler.length)
        if world.is_main:
            print(f"resuming from {resume} at update {restored.progress.updates}", flush=True)
    if isinstance(parts.roles.wrapped, PeftModel):
        parts.engine.copy_ema_to([p for _, p in adapter_parameters(parts.roles.wrapped, EMA)])
    if world.is_main:
        _announce(recipe, parts)
    return _assemble(recipe, parts, restored, stop or StopRequests(), watchdog or NullWatchdog(), locks)


def _build_parts(recipe: Recipe, ds_config: dict[str, Any], plan: BatchSizes, world: World, warm_start: bool) -> _Parts:
    """warm_start: `lora.weights` are loaded where the recipe names some. Collective."""
    schedule = make_schedule(load_model_config(recipe.model.config))
    objective = make_objective(recipe, schedule)  # before the model: options that fit nothing cost no loading
    model = make_model(recipe.model, recipe.seed)
    dataset = build_dataset(recipe, world, model)
    sampler = make_batch_sampler(dataset, recipe.data, recipe.seed)
    if dataset.read_latents and not objective.needs_latents:
        raise ValueError(f"data.latents=cache: objective {recipe.objective['name']} needs the pictures; use encode")
    roles, params = make_roles(model, objective, recipe)
    _refuse_stale_contexts(recipe, [name for name, _ in params])
    if recipe.lora.weights and warm_start:
        _start_warm(recipe, objective, [(n, p) for n, p in params if adapter_of(n) == STUDENT], world)
    step = TrainingStep(roles.wrapped, objective, roles).to(world.device)
    engine = Engine(step, params, recipe.train, plan, ds_config, world)
    info = run_info(engine, params, isinstance(roles.wrapped, PeftModel))
    return _Parts(objective, schedule, roles, engine, dataset, sampler, info)


def _assemble(
    recipe: Recipe, parts: _Parts, restored: Restored, stop: StopRequests, watchdog: RunWatchdog, locks: list[RunLock]
) -> Trainer:
    """The trainer around its parts. Rank 0 alone tracks, writes and draws. Collective."""
    objective, roles, engine, dataset = parts.objective, parts.roles, parts.engine, parts.dataset
    progress, world = restored.progress, engine.world
    tracker: RunTracker = NullTracker()
    writer: RunWriter = NullWriter()
    previews: Previews = NullPreviews()
    gauges: list[Gauge] = []
    if world.is_main:
        parameters = mlflow_parameters(recipe, engine, parts.info)
        tracker = Tracker(recipe.run_dir, recipe.tracking, parameters, restored.tracking_run_id)
        main_writer = CheckpointWriter(recipe.run_dir, recipe.checkpoint.keep, progress.checkpoint_failures)
        writer, gauges = main_writer, [lambda: {"checkpoint_failures": float(main_writer.failures)}, watchdog.metrics]
        if recipe.log.preview_every:
            previews = SamplePreviews(recipe, objective, roles, parts.schedule, dataset, world.device, tracker)
    latents = LatentSource(roles.model, keep_in_memory=recipe.data.latents == "memory")
    return Trainer(
        recipe=recipe,
        engine=engine,
        objective=objective,
        roles=roles,
        batches=MicroBatches(dataset, parts.sampler, engine.plan, world, recipe.data.workers),
        inputs=StepInputs(
            recipe.seed, world.device, latents if objective.needs_latents else None, _negative_contexts(recipe, roles)
        ),
        progress=progress,
        guard=StepGuard(engine, stop, recipe.run_dir),
        metrics=MetricsLog(recipe, engine, tracker, MetricsWindow(engine, restored.metrics), gauges),
        checkpoints=Checkpoints(recipe, engine, roles, writer, parts.sampler.length, tracker.run_id),
        validation=make_validation(recipe, dataset, roles, parts.schedule, engine, watchdog.heartbeat),
        previews=previews,
        samples=JournalSampleLog(recipe.run_dir, engine, progress.batches) if recipe.log.samples else NullSampleLog(),
        tracker=tracker,
        watchdog=watchdog,
        stop=stop,
        lock=locks[0] if locks else None,
    )


def _negative_contexts(recipe: Recipe, roles: AdapterRoles) -> Callable[[], Contexts | None]:
    """Encodes the negative prompt of the teacher's guidance, if there is any."""
    config = recipe.objective_config
    if not isinstance(config, StudentConfig) or config.is_unguided:
        return lambda: None
    prompt = config.negative_prompt
    return lambda: roles.model.negative_contexts(prompt)


def _announce(recipe: Recipe, parts: _Parts) -> None:
    """Writes run.json and says what is trained. Rank 0 only."""
    info = parts.info
    (recipe.run_dir / RUN_INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    if parts.objective.trains == "lora" and not 32 <= info["effective_batch"] <= 64:
        print(
            f"warning: train.effective_batch={info['effective_batch']} is outside 32-64, where distillation is known "
            "to work",
            flush=True,
        )
    print(
        f"training {info['trained_parameters']:,} parameters in {info['trained_tensors']} tensors; optimizer "
        f"{' + '.join(f'{b:,}' for b in info['optimizer_bytes_per_rank'])} bytes on {info['ranks']} rank(s); "
        f"effective batch {info['effective_batch']} = {info['micro_batch']} x {info['accumulation']} x {info['ranks']}",
        flush=True,
    )


def _take_folder(recipe: Recipe, locks: list[RunLock]) -> Path | None:
    """Locks the run folder, writes the recipe into it, and says which checkpoint to go on from. Rank 0 only."""
    locks.append(RunLock(recipe.run_dir))
    resume = resume_from(recipe)
    try:
        dump_recipe(recipe, recipe.run_dir / "recipe.yaml")
    except OSError as error:
        raise ValueError(f"{recipe.run_dir}: cannot be written ({error.strerror}); make room or change it") from error
    return resume


def _start_warm(recipe: Recipe, objective: Objective, params: list[tuple[str, nn.Parameter]], world: World) -> None:
    if objective.trains != "lora":
        raise ValueError(f"lora.weights: objective {recipe.objective['name']} trains no LoRA; leave it empty")
    start = read_warm_start(Path(recipe.lora.weights), recipe.lora)
    load_warm_start(start, params)
    if world.is_main:
        after = "" if start.step is None else f", trained for {start.step} updates before"
        print(f"the student starts from {start.path}: {len(start.tensors)} tensors{after}", flush=True)


def _refuse_stale_contexts(recipe: Recipe, trained: list[str]) -> None:
    """Contexts from the feature cache are those of a text tower that stays as it is."""
    tower = [name for name in trained if "cond_stage_model." in name]
    if recipe.data.captions == "cache" and tower:
        raise ValueError(
            f"data.captions=cache: this run trains the text tower ({len(tower)} tensors, as {tower[0]}), so that "
            "contexts change; set data.captions=encode, or keep it frozen, as with objective.scope=official"
        )


def run_info(engine: Engine, params: list[tuple[str, nn.Parameter]], lora: bool) -> dict[str, Any]:
    """What this run is, in numbers. Collective."""
    return {
        "ranks": engine.world.size,
        "device": engine.world.device.type,
        "precision": engine.precision,
        "effective_batch": engine.plan.effective,
        "micro_batch": engine.plan.micro,
        "accumulation": engine.plan.accumulation,
        "trained": "lora" if lora else "weights",
        "trained_parameters": sum(p.numel() for _, p in params),
        "trained_tensors": len(params),
        "optimizer_bytes_per_rank": engine.gather(engine.optimizer_bytes()),
    }


def mlflow_parameters(recipe: Recipe, engine: Engine, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that MLflow records as a parameter, nested."""
    return {
        "recipe": OmegaConf.to_container(OmegaConf.structured(recipe)),
        "deepspeed": engine.ds_config,
        "run": {k: v for k, v in facts.items() if k != "optimizer_bytes_per_rank"},
        "environment": environment(),
        "command": " ".join(sys.argv),
    }
