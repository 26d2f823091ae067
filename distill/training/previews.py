"""Pictures of the student during training: the same few samples, drawn at intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from anytext2.core.batch import Batch, Sample, collate
from anytext2.data.dataset import AnyWordDataset, SampleError
from distill.adapters.roles import AdapterRoles
from distill.config.schema import Recipe
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.objectives.base import Objective
from distill.tracking.page_view import PREVIEWS
from distill.training.inputs import without_dropout
from distill.training.null_objects import RunTracker
from distill.viz import batch_pictures

FOLDER = "previews"
TEACHER_GUIDANCE = 3.0


class Previews(Protocol):
    def draw(self, updates: int) -> None:
        """Writes previews/step-N.png and registers it with the tracker."""


class NullPreviews:
    """Draws nothing: on ranks other than 0, and where log.preview_every=0."""

    def draw(self, updates: int) -> None:
        pass


class SamplePreviews:
    """Draws the first log.preview_samples samples of the data with the student, teacher or VAE that is trained."""

    def __init__(
        self,
        recipe: Recipe,
        objective: Objective,
        roles: AdapterRoles,
        schedule: NoiseSchedule,
        dataset: AnyWordDataset,
        device: torch.device,
        tracker: RunTracker,
    ) -> None:
        self._recipe, self._objective, self._roles, self._schedule = recipe, objective, roles, schedule
        self._dataset, self._device, self._tracker = dataset, device, tracker
        self._batch: Batch | None = None  # read when the first picture is drawn

    def draw(self, updates: int) -> None:
        if self._batch is None:
            self._batch = _first_samples(self._dataset, self._recipe.log.preview_samples).to(self._device)
        with without_dropout(self._roles.wrapped):
            images = self._images(self._batch)
        if not images:
            return
        folder = self._recipe.run_dir / FOLDER
        path = folder / f"step-{updates:07d}.png"
        try:
            folder.mkdir(exist_ok=True)
            batch_pictures.preview_grid(self._batch.to("cpu"), images).save(path)
        except OSError as error:  # a full disk must not end a training
            print(f"warning: {path}: {error.strerror or error}; this preview is left out", flush=True)
            return
        self._tracker.artifact(path, FOLDER, PREVIEWS, updates)

    @torch.no_grad()
    def _images(self, batch: Batch) -> dict[str, Tensor]:
        """Label -> pictures [B, 3, H, W] in [-1, 1]; empty for a recogniser, which draws nothing."""
        roles, trains = self._roles, self._objective.trains
        if trains == "vae":
            return {"reconstruction": roles.model.decode(roles.model.encode(batch.image)).float().cpu()}
        if trains == "recognizer":
            return {}
        steps = self._recipe.log.preview_steps
        if trains == "lora":
            spec, negative_prompt = SamplingSpec("student", self._recipe.student.sampler, steps), None
        else:
            spec, negative_prompt = SamplingSpec("teacher", "ddim", steps, TEACHER_GUIDANCE), ""
        inputs = prepare_sampling(roles, batch, self._recipe.seed, negative_prompt)
        (sampled,) = sample_batch(roles, inputs, [spec], self._schedule, self._recipe.student.options)
        return {spec.label: sampled.image.cpu() * 2.0 - 1.0}


def from_files(data: AnyWordDataset) -> AnyWordDataset:
    """The same samples without the feature cache, which may hold no pictures."""
    return AnyWordDataset(data.records, data.config, data.seed, data.fonts)


def readable(dataset: AnyWordDataset, indices: Iterable[int]) -> Iterator[Sample]:
    """Samples of the first epoch, without those that cannot be read: the training itself counts and reports them."""
    for index in indices:
        try:
            yield dataset.sample(index, 0)
        except SampleError:
            continue


def _first_samples(dataset: AnyWordDataset, count: int) -> Batch:
    return collate(list(islice(readable(from_files(dataset), range(len(dataset))), count))).normalized()
