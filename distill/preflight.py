"""The look before the leap: one batch is audited and drawn before the first step. Collective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anytext2.batch import Batch, collate
from anytext2.dataset import SampleError
from anytext2.model import AnyText2
from distill import audit, preview
from distill.objectives.base import StepInput
from distill.painting import RowSpec, paint, set_scene
from distill.stream import Order, loader, micro_batches
from distill.student import STUDENT

if TYPE_CHECKING:
    from distill.trainer import Session

AUDIT_PICTURE = "audit.png"
PREVIEWS = "previews"
TEACHER_PREVIEW_GUIDANCE = 3.0


def audit_first_batch(session: Session) -> None:
    """Audits the first micro-batch of every rank and draws rank 0's to `audit.png` and the tracker.

    Raises audit.AuditError, on every rank, where any rank finds something that cannot be right.
    """
    recipe, engine = session.recipe, session.engine
    order = Order(len(session.dataset), recipe.seed)
    keys = islice(micro_batches(order, engine.plan, engine.world.rank, session.progress.batches), 1)
    item = session.step_input(next(loader(session.dataset, keys, 0, False)))
    if session.tracker is not None:
        path = recipe.run_dir / AUDIT_PICTURE
        preview.audit_picture(item.batch.to("cpu")).save(path)
        session.tracker.artifact(path)
    with _without_dropout(session):
        everywhere = engine.gather(list(_findings(session, item)))
    audit.require([finding for rank in everywhere for finding in rank])
    if engine.world.is_main:
        print(
            f"audit: one batch, its conditions and gradients are sound; see {recipe.run_dir / AUDIT_PICTURE}",
            flush=True,
        )


@contextmanager
def _without_dropout(session: Session) -> Iterator[None]:
    """Two calls with the same input must agree here; afterwards the training goes on in its own mode."""
    wrapped = session.roles.wrapped
    before = wrapped.training
    wrapped.eval()
    try:
        yield
    finally:
        wrapped.train(before)


def _findings(session: Session, item: StepInput) -> Iterator[audit.Finding]:
    yield from audit.audit_batch(item.batch)
    if not session.objective.needs_latents:
        return
    model = _Conditioned(session.roles.model)
    with torch.inference_mode():
        assert item.masked_latent is not None
        conditions = model.condition(item.batch, item.masked_latent)
    yield from audit.audit_conditions(model, item.batch, conditions)
    yield from audit.audit_control(model, conditions)
    if session.objective.trains == "lora":
        yield from audit.audit_adapters(
            session.roles.wrapped, lambda: session.objective.loss(session.roles, item).loss, STUDENT
        )


class _Conditioned:
    """AnyText2 behind the argument names of `audit.ConditionedModel`."""

    def __init__(self, model: AnyText2) -> None:
        self.condition, self.write = model.condition, model.write
        self._predict = model.predict_noise

    def predict_noise(self, x: Tensor, t: Tensor, image_context: Tensor, control: tuple[Tensor, ...]) -> Tensor:
        return self._predict(x, t, image_context, control)


class Previews:
    """Draws the same few samples at intervals, with what the training has made of them so far. Rank 0 only."""

    def __init__(self, session: Session) -> None:
        self._batch = _first_samples(session).to(session.engine.world.device)

    def __call__(self, session: Session) -> None:
        """Writes previews/step-N.png and registers it with the tracker; nothing for a recogniser: it draws nothing."""
        with _without_dropout(session):
            images = _predictions(session, self._batch)
        if not images:
            return
        folder = session.recipe.run_dir / PREVIEWS
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{session.progress.updates:07d}.png"
        preview.preview_grid(self._batch.to("cpu"), images).save(path)
        assert session.tracker is not None
        session.tracker.artifact(path, PREVIEWS)


def _first_samples(session: Session) -> Batch:
    samples = []
    for index in range(len(session.dataset)):
        try:
            samples.append(session.dataset.sample(index, 0))
        except SampleError:
            continue  # the training itself counts and reports what cannot be read
        if len(samples) == session.recipe.log.preview_samples:
            break
    return collate(samples)


@torch.no_grad()
def _predictions(session: Session, batch: Batch) -> dict[str, Tensor]:
    roles, steps = session.roles, session.recipe.log.preview_steps
    if session.objective.trains == "vae":
        return {"reconstruction": roles.model.decode(roles.model.encode(batch.image)).float().cpu()}
    if session.objective.trains == "recognizer":
        return {}
    student = session.objective.trains == "lora"
    spec = (
        RowSpec("student", "consistency", steps)
        if student
        else RowSpec("teacher", "ddim", steps, TEACHER_PREVIEW_GUIDANCE)
    )
    scene = set_scene(roles, batch, session.recipe.seed, None if student else "")
    painting = next(paint(roles, scene, [spec], session.schedule))
    return {spec.label: painting.image.cpu() * 2.0 - 1.0}
