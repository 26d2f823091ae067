"""From a recipe to a trainer: data, model, roles, engine, tracking, and the checkpoint to resume from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from anytext2.core.batch import Contexts
from anytext2.data.dataset import AnyWordDataset
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.memory_format import use_gpu_format
from distill.adapters.lora import adapter_of, adapter_parameters, add_adapter, add_student
from distill.adapters.roles import EMA, STUDENT, AdapterRoles
from distill.adapters.targets import lora_targets
from distill.adapters.warm_start import WarmStart, load_warm_start, read_start
from distill.checkpoint.run_folder import RECIPE, RUN_INFO, keep_recipes
from distill.checkpoint.run_lock import RunLock
from distill.checkpoint.writer import CheckpointWriter
from distill.compilation.setup import make_compilation
from distill.config.recipes import dump_recipe
from distill.config.schema import Recipe
from distill.data.batch_sampler import BatchSampler
from distill.data.build import DRAWN, build_dataset, must_draw
from distill.data.latents import LatentSource
from distill.data.loader import BatchSizes
from distill.data.splits import make_batch_sampler
from distill.diffusion.schedule import NoiseSchedule
from distill.inference.model import make_model, make_schedule, require_recognizer
from distill.objectives import OBJECTIVES
from distill.objectives.base import FullWeightObjective, Objective
from distill.objectives.teacher import StudentConfig
from distill.runtime.device_settings import apply_device_settings
from distill.runtime.signals import StopRequests
from distill.runtime.world import World, on_main
from distill.tracking.notify import Notifier, require_command
from distill.tracking.run_notes import first_notes, mlflow_parameters
from distill.tracking.tracker import Tracker
from distill.training.checkpointing import Checkpoints
from distill.training.engine import Engine
from distill.training.inputs import MicroBatches, StepInputs
from distill.training.metrics import Gauge, MetricsLog, MetricsWindow
from distill.training.null_objects import NullTracker, NullWatchdog, NullWriter, RunTracker, RunWatchdog, RunWriter
from distill.training.previews import NullPreviews, Previews, SamplePreviews
from distill.training.resume import check_resume, check_samples, mark_best, restore, resume_from
from distill.training.sample_log import JournalSampleLog, NullSampleLog
from distill.training.state import Progress, Restored
from distill.training.step_guard import StepGuard
from distill.training.trainer import Trainer, TrainingStep
from distill.training.validation import HELD_OUT, Validation, draws_held_out, make_validation, open_ocr


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
    return AdapterRoles(wrapped, recipe.train.teacher_fp16_accumulation), params


def check_adapter(recipe: Recipe) -> None:
    """Raises ValueError where `lora.targets` does not fit the network; a second without weights tells."""
    if recipe.objective_config.student is not None:
        lora_targets(build_model(load_model_config(recipe.model.config), "meta"), recipe.lora.targets)


@dataclass(frozen=True)
class _Network:
    """What is trained: the network under the engine, and its objective."""

    objective: Objective
    roles: AdapterRoles
    engine: Engine
    info: dict[str, Any]


@dataclass(frozen=True)
class _Data:
    """What it is trained and validated on."""

    dataset: AnyWordDataset
    sampler: BatchSampler
    validation: Validation


@dataclass(frozen=True)
class _Start:
    """Where a run begins. resume: the checkpoint to go on from. draws: its pictures are not drawn yet."""

    resume: Path | None
    draws: bool


def make_trainer(
    recipe: Recipe,
    ds_config: dict[str, Any],
    world: World,
    stop: StopRequests | None = None,
    watchdog: RunWatchdog | None = None,
) -> Trainer:
    """Builds every part of a run and resumes where there is something to resume. Collective.

    Nothing is written before everything is checked: a run that is refused, with a ValueError, leaves its folder as it
    was, or makes none.
    """
    require_recognizer(recipe)
    plan = BatchSizes(recipe.train.effective_batch, recipe.train.micro_batch, world.size)
    schedule = make_schedule(load_model_config(recipe.model.config))
    objective = make_objective(recipe, schedule)
    watchdog = watchdog or NullWatchdog()
    heartbeat = watchdog.heartbeat
    locks: list[RunLock] = []  # rank 0's
    made: list[Path] = []
    try:
        start = on_main(world, lambda: _check_start(recipe, objective, locks))
        ocr = open_ocr(recipe)
        early = None if start.draws or _needs_model(recipe) else build_dataset(recipe, world)
        network, restored = _build_network(recipe, objective, ds_config, plan, world, start.resume)
        roles, engine = network.roles, network.engine

        def read_data() -> _Data:
            dataset = build_dataset(recipe, world, roles.model) if early is None else early
            sampler = make_batch_sampler(dataset, recipe.data, recipe.seed)
            return _Data(dataset, sampler, make_validation(recipe, ocr, dataset, roles, schedule, engine, heartbeat))

        data = None if start.draws or draws_held_out(recipe) else read_data()
        on_main(world, lambda: _take_folder(recipe, locks[0], made))
        data = data or read_data()
        on_main(world, lambda: _write_recipe(recipe, network.info))
    except ValueError:
        _leave_folder(locks, made)
        raise
    if world.is_main:
        _announce(network)
        if start.resume is not None:
            check_samples(start.resume, restored, data.sampler.length)
            mark_best(start.resume, recipe, restored.progress)
    return _assemble(recipe, network, schedule, data, restored, stop or StopRequests(), watchdog, locks)


def _check_start(recipe: Recipe, objective: Objective, locks: list[RunLock]) -> _Start:
    """What can be checked without the network. Takes the lock of a folder that has one. Rank 0 only."""
    check_adapter(recipe)
    require_command(recipe.tracking.notify)
    if recipe.data.latents == "cache" and not objective.needs_latents:
        raise ValueError(f"data.latents=cache: objective {recipe.objective['name']} needs the pictures; use encode")
    locks.append(RunLock(recipe.run_dir))
    resume = resume_from(recipe)
    if resume is not None:
        check_resume(resume, recipe)
    elif recipe.lora.weights and objective.trains != "lora":
        raise ValueError(f"lora.weights: objective {recipe.objective['name']} trains no LoRA; leave it empty")
    return _Start(resume, must_draw(recipe))


def _take_folder(recipe: Recipe, lock: RunLock, made: list[Path]) -> None:
    """From here on the folder is this run's. made: takes what may be drawn into it, and is not there. Rank 0 only."""
    made += [folder for name in (DRAWN, HELD_OUT) if not (folder := recipe.run_dir / name).exists()]
    lock.take()


def _leave_folder(locks: Sequence[RunLock], made: Sequence[Path]) -> None:
    """Removes what a run that is refused after all has made. Rank 0 has a lock."""
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
    for lock in locks:
        lock.discard()


def _write_recipe(recipe: Recipe, info: dict[str, Any]) -> None:
    """Writes recipe.yaml and run.json. Rank 0 only."""
    try:
        keep_recipes(recipe.run_dir)
        dump_recipe(recipe, recipe.run_dir / RECIPE)
        (recipe.run_dir / RUN_INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{recipe.run_dir}: cannot be written ({error.strerror}); make room or change it") from error


def _build_network(
    recipe: Recipe,
    objective: Objective,
    ds_config: dict[str, Any],
    plan: BatchSizes,
    world: World,
    resume: Path | None,
) -> tuple[_Network, Restored]:
    """The network with its first weights: the checkpoint's, or those of `lora.weights` or fresh ones. Collective."""
    warm = read_start(recipe.lora, recipe.model.config) if recipe.lora.weights and not resume else None
    model = make_model(recipe.model, recipe.seed)
    roles, params = make_roles(model, objective, recipe)
    _refuse_stale_contexts(recipe, [name for name, _ in params])
    if warm is not None:
        _start_warm(warm, [(n, p) for n, p in params if adapter_of(n) == STUDENT], world)
    apply_device_settings(world.device, tf32=True)
    step = TrainingStep(roles.wrapped, objective, roles).to(world.device)
    engine = Engine(step, params, recipe.train, plan, ds_config, world)
    use_gpu_format(roles.model)  # not before: DeepSpeed broadcasts contiguous weights only
    restored = Restored(Progress())
    if resume is not None:
        restored = restore(resume, recipe, engine)
        if world.is_main:
            print(f"resuming from {resume} at update {restored.progress.updates}", flush=True)
    if isinstance(roles.wrapped, PeftModel):
        engine.copy_ema_to([p for _, p in adapter_parameters(roles.wrapped, EMA)])
    info = run_info(engine, params, isinstance(roles.wrapped, PeftModel))
    return _Network(objective, roles, engine, info), restored


def _assemble(
    recipe: Recipe,
    network: _Network,
    schedule: NoiseSchedule,
    data: _Data,
    restored: Restored,
    stop: StopRequests,
    watchdog: RunWatchdog,
    locks: list[RunLock],
) -> Trainer:
    """The trainer around its parts. Rank 0 alone tracks, writes and draws. Collective."""
    objective, roles, engine, dataset = network.objective, network.roles, network.engine, data.dataset
    progress, world = restored.progress, engine.world
    tracker: RunTracker = NullTracker()
    writer: RunWriter = NullWriter()
    previews: Previews = NullPreviews()
    gauges: list[Gauge] = []
    if world.is_main:
        parameters = mlflow_parameters(recipe, engine.ds_config, network.info)
        sources = [Path(source) for source in recipe.data.sources] or [recipe.run_dir / DRAWN / "data.json"]
        notes = partial(first_notes, recipe, network.info, sources, len(dataset))
        told, before = Notifier(recipe.tracking.notify, recipe.run_dir), restored.tracking_run_id
        tracker = Tracker(recipe.run_dir, recipe.tracking, parameters, before, notes=notes, notifier=told)
        main_writer = CheckpointWriter(recipe.run_dir, recipe.checkpoint.keep, progress.checkpoint_failures)
        writer, gauges = main_writer, [lambda: {"checkpoint_failures": float(main_writer.failures)}, watchdog.metrics]
        if recipe.log.preview_every:
            previews = SamplePreviews(recipe, objective, roles, schedule, dataset, world.device, tracker)
    latents = LatentSource(roles.model, keep_in_memory=recipe.data.latents == "memory")
    return Trainer(
        recipe=recipe,
        engine=engine,
        objective=objective,
        roles=roles,
        compilation=make_compilation(recipe, roles, world),
        batches=MicroBatches(dataset, data.sampler, engine.plan, world, recipe.data.workers),
        inputs=StepInputs(
            recipe.seed, world.device, latents if objective.needs_latents else None, negative_contexts(recipe, roles)
        ),
        progress=progress,
        guard=StepGuard(engine, stop, recipe.run_dir),
        metrics=MetricsLog(
            recipe, engine, tracker, MetricsWindow(engine, restored.metrics), gauges, data.sampler.length
        ),
        checkpoints=Checkpoints(recipe, engine, roles, writer, data.sampler.length, tracker.run_id),
        validation=data.validation,
        previews=previews,
        samples=JournalSampleLog(recipe.run_dir, engine, progress.batches) if recipe.log.samples else NullSampleLog(),
        tracker=tracker,
        watchdog=watchdog,
        stop=stop,
        lock=locks[0] if locks else None,
        facts=network.info,
    )


def negative_contexts(recipe: Recipe, roles: AdapterRoles) -> Callable[[], Contexts | None]:
    """Encodes the negative prompt of the teacher's guidance, if there is any."""
    config = recipe.objective_config
    if not isinstance(config, StudentConfig) or config.is_unguided:
        return lambda: None
    return lambda: roles.model.negative_contexts(config.negative_prompt)


def _announce(network: _Network) -> None:
    """Says what is trained. Rank 0 only."""
    info = network.info
    effective = info["effective_batch"]
    if network.objective.trains == "lora" and not 32 <= effective <= 64:
        text = f"train.effective_batch={effective} is outside 32-64, where distillation is known to work"
        print(f"warning: {text}", flush=True)
    print(
        f"training {info['trained_parameters']:,} parameters in {info['trained_tensors']} tensors; optimizer "
        f"{' + '.join(f'{b:,}' for b in info['optimizer_bytes_per_rank'])} bytes on {info['ranks']} rank(s); "
        f"effective batch {effective} = {info['micro_batch']} x {info['accumulation']} x {info['ranks']}",
        flush=True,
    )


def _start_warm(start: WarmStart, params: list[tuple[str, nn.Parameter]], world: World) -> None:
    load_warm_start(start, params)
    if world.is_main:
        print(f"the student starts from {start.described(len(params))}", flush=True)


def _needs_model(recipe: Recipe) -> bool:
    """Whether the feature cache must fit the network's own weights."""
    return "cache" in (recipe.data.latents, recipe.data.captions)


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
