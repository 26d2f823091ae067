"""Sanity checks before the first step: one batch, the conditions made of it, and the gradients that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from torch import Tensor

from anytext2.data.dataset import AnyWordDataset
from anytext2.model.anytext2 import BLANK_PIXEL
from distill.adapters.roles import STUDENT, AdapterRoles, Roles
from distill.checks import model_checks
from distill.checks.batch_checks import check_samples, has_text, no_text
from distill.checks.teacher_precision import check_accumulation
from distill.config.schema import Recipe
from distill.losses.step_input import StepInput
from distill.objectives.base import Objective
from distill.tracking.page_view import PREVIEWS
from distill.training.engine import Engine
from distill.training.inputs import MicroBatches, StepInputs, without_dropout
from distill.training.null_objects import RunTracker
from distill.training.previews import from_files, readable
from distill.training.state import Progress
from distill.viz import batch_pictures
from distill.viz.contact_sheet import contact_sheet, evenly_spaced_indices

AUDIT_PICTURE = "audit.png"
SAMPLES_PICTURE = "data_samples.png"
SHOWN_SAMPLES = 8
SEARCHED_BATCHES = 8
"""Global batches in which a text is looked for: a picture without text is no fault, but it tests nothing."""


def check_first_batch(
    recipe: Recipe,
    objective: Objective,
    roles: AdapterRoles,
    engine: Engine,
    batches: MicroBatches,
    inputs: StepInputs,
    tracker: RunTracker,
    progress: Progress,
) -> None:
    """Checks the next micro-batch of every rank that has text, if the first ones have none. Collective.

    Rank 0 draws its own to `audit.png`, and samples from all over the data to `data_samples.png`. Raises
    FirstBatchError, on every rank, where any rank finds something that cannot be right; with a fault that was put in on
    purpose (model.fault_injection) the findings are only printed.
    """
    number, searched = _batch_with_text(batches, progress.batches, engine)
    item = inputs(batches.first_of(number), progress.updates)
    if batches.dataset.read_latents:
        item = _with_pictures(item, batches, number, engine.world.device)
    if engine.world.is_main:
        path = recipe.run_dir / AUDIT_PICTURE
        batch_pictures.audit_picture(item.batch.to("cpu")).save(path)
        tracker.artifact(path)
        _draw_samples(recipe, batches.dataset, tracker)
    with without_dropout(roles.wrapped):
        own = list(_findings(objective, roles, item, recipe.data.options.like_reference))
        everywhere = engine.gather(own)
    findings = searched + [finding for rank in everywhere for finding in rank]
    if recipe.model.fault_injection:
        if engine.world.is_main:
            found = "; ".join(map(str, findings[:3])) or "nothing"
            print(
                f"warning: model.fault_injection={recipe.model.fault_injection}: a fault on purpose. The audit found "
                f"{found}",
                flush=True,
            )
        return
    model_checks.require_sound(findings)
    if engine.world.is_main:
        print(
            f"audit: one batch, its conditions and gradients are sound; see {recipe.run_dir / AUDIT_PICTURE}",
            flush=True,
        )


def _batch_with_text(batches: MicroBatches, first: int, engine: Engine) -> tuple[int, list[model_checks.Finding]]:
    """The next global batch, from `first` on, of which a rank's first micro-batch has text; a finding if none has any.

    Without text a batch cannot show whether text is drawn rightly. Collective.
    """
    for number in range(first, first + SEARCHED_BATCHES):
        if any(engine.gather(has_text(batches.first_of(number).batch))):
            return number, []
    return first, [no_text(f"the first micro-batches of {SEARCHED_BATCHES} batches")]


def _with_pictures(item: StepInput, batches: MicroBatches, number: int, device: torch.device) -> StepInput:
    """The same item, of global batch `number`, with the pictures that stored latents were made of."""
    loaded = batches.first_of(number, from_files(batches.dataset))
    pictures = loaded.batch.normalized().to(device)
    # Fewer pictures are edited with stored latents (those with more lines than a sample holds are not).
    editing = torch.tensor(item.batch.editing, device=device).reshape(-1, 1, 1, 1)
    masked = torch.where(editing, pictures.masked_image, BLANK_PIXEL)
    return replace(item, batch=replace(item.batch, image=pictures.image, masked_image=masked))


def _draw_samples(recipe: Recipe, data: AnyWordDataset, tracker: RunTracker) -> None:
    samples = list(readable(from_files(data), evenly_spaced_indices(len(data), SHOWN_SAMPLES)))
    if samples:
        path = recipe.run_dir / SAMPLES_PICTURE
        contact_sheet(samples).save(path, compress_level=3)
        tracker.artifact(path)
        tracker.artifact(path, "", PREVIEWS, 0)  # where MLflow's slider begins


def _findings(
    objective: Objective, roles: AdapterRoles, item: StepInput, like_reference: bool
) -> Iterator[model_checks.Finding]:
    yield from check_samples(item.batch, like_reference)
    if not objective.needs_latents:
        return
    model = roles.model
    with torch.inference_mode():
        assert item.masked_latent is not None
        conditions = model.encode_conditions(item.batch, item.masked_latent)
    yield from model_checks.check_conditions(model, item.batch, conditions)
    yield from model_checks.check_recognizer(model, item.batch, item.masked_latent)
    yield from model_checks.check_control(model, conditions)
    if roles.teacher_fp16_accumulation:
        yield from check_accumulation(roles, item.masked_latent, conditions)
    if objective.trains == "lora":
        first_updates = _first_updates(objective)
        for adapter, update in first_updates.items():
            loss = partial(_loss, objective, roles, replace(item, update=update))
            others = [other for other in first_updates if other != adapter]
            yield from model_checks.check_adapters(roles.wrapped, loss, adapter, others)


def _first_updates(objective: Objective) -> dict[str, int]:
    """The adapters that the objective trains, each with the first update that trains it."""
    trained = [STUDENT, *(second.name for second in objective.config.second_adapters if second.trained)]
    return {adapter: next(n for n in count() if objective.trained_adapter(n) == adapter) for adapter in trained}


def _loss(objective: Objective, roles: Roles, item: StepInput) -> Tensor:
    return objective.loss(roles, item).loss
