"""The look before the leap: one batch is audited and drawn before the first step. Collective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anytext2.core.batch import Batch, Sample, collate
from anytext2.data.dataset import AnyWordDataset, SampleError
from anytext2.model.anytext2 import BLANK_IMAGE
from distill.adapters.roles import FAKE_SCORE, STUDENT, Roles
from distill.checks import model_checks
from distill.checks.batch_checks import check_batch
from distill.config.recipes import sampling_options, student_sampler
from distill.data.loader import load_batches, micro_batches
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.losses.step import StepInput
from distill.objectives.base import AlternatingObjective, Objective
from distill.viz import batch_pictures
from distill.viz.contact_sheet import contact_sheet, evenly_spaced_indices

if TYPE_CHECKING:
    from distill.tracking.tracker import Tracker
    from distill.training.trainer import Session

AUDIT_PICTURE = "audit.png"
SAMPLES_PICTURE = "data_samples.png"
SHOWN_SAMPLES = 8
PREVIEWS = "previews"
TEACHER_PREVIEW_GUIDANCE = 3.0


def check_first_batch(session: Session) -> None:
    """Audits the first micro-batch of every rank and draws rank 0's to `audit.png` and the tracker, and beside it
    samples from all over the data to `data_samples.png`.

    Raises model_checks.FirstBatchError, on every rank, where any rank finds something that cannot be right.
    """
    recipe, engine = session.recipe, session.engine
    keys = next(micro_batches(session.order, engine.plan, engine.world.rank, session.progress.batches))
    item = session.step_input(next(load_batches(session.dataset, iter([keys]), 0, False)))
    if session.dataset.latents:
        seen = next(load_batches(_from_files(session.dataset), iter([keys]), 0, False)).batch.floating()
        seen = seen.to(engine.world.device)
        # Fewer pictures are edited with stored latents (those with more lines than a sample holds are not).
        editing = torch.tensor(item.batch.editing, device=seen.image.device).reshape(-1, 1, 1, 1)
        masked = torch.where(editing, seen.masked_image, BLANK_IMAGE)
        item = replace(item, batch=replace(item.batch, image=seen.image, masked_image=masked))
    if session.tracker is not None:
        path = recipe.run_dir / AUDIT_PICTURE
        batch_pictures.audit_picture(item.batch.to("cpu")).save(path)
        session.tracker.artifact(path)
        _show_samples(session, session.tracker)
    with without_dropout(session):
        everywhere = engine.gather(list(_findings(session, item)))
    findings = [finding for rank in everywhere for finding in rank]
    if recipe.model.planted:
        if engine.world.is_main:
            found = "; ".join(map(str, findings[:3])) or "nothing"
            print(
                f"warning: model.planted={recipe.model.planted}: a fault on purpose. The audit found {found}",
                flush=True,
            )
        return
    model_checks.require_sound(findings)
    if engine.world.is_main:
        print(
            f"audit: one batch, its conditions and gradients are sound; see {recipe.run_dir / AUDIT_PICTURE}",
            flush=True,
        )


def _show_samples(session: Session, tracker: Tracker) -> None:
    data = session.dataset
    samples = list(_readable(_from_files(data), evenly_spaced_indices(len(data), SHOWN_SAMPLES)))
    if samples:
        path = session.recipe.run_dir / SAMPLES_PICTURE
        contact_sheet(samples).save(path, compress_level=3)
        tracker.artifact(path)


def _from_files(data: AnyWordDataset) -> AnyWordDataset:
    """The same samples without the feature cache, which may hold no pictures."""
    return AnyWordDataset(data.records, data.config, data.seed, data.fonts)


def _readable(dataset: AnyWordDataset, indices: Iterable[int]) -> Iterator[Sample]:
    """Samples of the first epoch, without those that cannot be read: the training itself counts and reports them."""
    for index in indices:
        try:
            yield dataset.sample(index, 0)
        except SampleError:
            continue


@contextmanager
def without_dropout(session: Session) -> Iterator[None]:
    """Two calls with the same input must agree here; afterwards the training goes on in its own mode."""
    wrapped = session.roles.wrapped
    before = wrapped.training
    wrapped.eval()
    try:
        yield
    finally:
        wrapped.train(before)


def _findings(session: Session, item: StepInput) -> Iterator[model_checks.Finding]:
    yield from check_batch(item.batch)
    if not session.objective.needs_latents:
        return
    model = session.roles.model
    with torch.inference_mode():
        assert item.masked_latent is not None
        conditions = model.condition(item.batch, item.masked_latent)
    yield from model_checks.check_conditions(model, item.batch, conditions)
    yield from model_checks.check_recognizer(model, item.batch, item.masked_latent)
    yield from model_checks.check_control(model, conditions)
    if session.objective.trains == "lora":
        turns = _first_turns(session.objective)
        for adapter, update in turns.items():
            loss = partial(_loss, session.objective, session.roles, replace(item, update=update))
            beside = [other for other in turns if other != adapter]
            yield from model_checks.check_adapters(session.roles.wrapped, loss, adapter, beside)


def _first_turns(objective: Objective) -> dict[str, int]:
    """The adapters that the objective trains, with the first update of each."""
    if not isinstance(objective, AlternatingObjective):
        return {STUDENT: 0}
    return {adapter: next(n for n in count() if objective.turn(n) == adapter) for adapter in (STUDENT, FAKE_SCORE)}


def _loss(objective: Objective, roles: Roles, item: StepInput) -> Tensor:
    return objective.loss(roles, item).loss


class Previews:
    """Draws the same few samples at intervals, with what the training has made of them so far. Rank 0 only."""

    def __init__(self, session: Session) -> None:
        self._batch = _first_samples(session).to(session.engine.world.device)

    def __call__(self, session: Session) -> None:
        """Writes previews/step-N.png and registers it with the tracker; nothing for a recogniser: it draws nothing."""
        with without_dropout(session):
            images = _predictions(session, self._batch)
        if not images:
            return
        folder = session.recipe.run_dir / PREVIEWS
        path = folder / f"step-{session.progress.updates:07d}.png"
        try:
            folder.mkdir(exist_ok=True)
            batch_pictures.preview_grid(self._batch.to("cpu"), images).save(path)
        except OSError as error:  # a full disk must not end a training
            print(f"warning: {path}: {error.strerror or error}; this preview is left out", flush=True)
            return
        assert session.tracker is not None
        session.tracker.artifact(path, PREVIEWS)


def _first_samples(session: Session) -> Batch:
    readable = _readable(_from_files(session.dataset), range(len(session.dataset)))
    return collate(list(islice(readable, session.recipe.log.preview_samples))).floating()


@torch.no_grad()
def _predictions(session: Session, batch: Batch) -> dict[str, Tensor]:
    roles, steps = session.roles, session.recipe.log.preview_steps
    if session.objective.trains == "vae":
        return {"reconstruction": roles.model.decode(roles.model.encode(batch.image)).float().cpu()}
    if session.objective.trains == "recognizer":
        return {}
    student = session.objective.trains == "lora"
    spec = (
        SamplingSpec("student", student_sampler(session.recipe), steps)
        if student
        else SamplingSpec("teacher", "ddim", steps, TEACHER_PREVIEW_GUIDANCE)
    )
    scene = prepare_sampling(roles, batch, session.recipe.seed, None if student else "")
    painting = next(sample_batch(roles, scene, [spec], session.schedule, sampling_options(session.recipe)))
    return {spec.label: painting.image.cpu() * 2.0 - 1.0}
