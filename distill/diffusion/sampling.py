"""Samples one batch by teacher or student in any of several ways, all from the same start noise.

A way of sampling is a `SamplingSpec`: role (teacher, the same weights undistilled at few steps, student), sampler,
steps and guidance. The WriteNet's maps depend on neither noise nor time, so they are computed once for each batch and
role.

Shape legend: B batch, z latent channels, h/w latent cells, H/W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch

from anytext2.core.batch import Batch, Conditions, Contexts, Control
from anytext2.core.rng import Draws
from anytext2.model.anytext2 import AnyText2
from anytext2.model.layers import ProjectedContext
from distill.adapters.roles import SamplingRoles, predict_noise
from distill.diffusion.guidance import predict_guided, with_negative
from distill.diffusion.samplers import LCM_OPTIONS, SAMPLERS, TEACHER_SAMPLER, SamplerOptions
from distill.diffusion.schedule import NoiseSchedule
from distill.viz.grids import to_unit_range

Role = Literal["teacher", "undistilled", "student"]

DECODED_CELLS = 8 * 64 * 64
"""The VAE decodes at most this many latent cells in one call, 8 pictures of 512 px, which bounds its memory."""


MOST_SCALE = 2.0
"""Greatest strength and attnx_scale, as in AnyText2's demo."""

OnStep = Callable[["SamplingSpec", int, int, torch.Tensor], None]
"""What is called after each step: way of sampling, number of the step from 0, its timestep, latent [B, z, h, w]."""


@dataclass(frozen=True)
class SamplingSpec:
    """One way of sampling.

    sampler: a name in `SAMPLERS`. guidance: the usual scale, e = u + guidance (c - u); 1 means none, at half the cost.
    gamma: of the trajectory sampler. strength: factor of the control maps. attnx_scale: weight of the attnx layers.
    """

    role: Role
    sampler: str
    steps: int
    guidance: float = 1.0
    gamma: float = 0.3
    strength: float = 1.0
    attnx_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (("role", self.role, get_args(Role)), ("sampler", self.sampler, SAMPLERS)):
            if value not in known:
                raise ValueError(f"row {self.key}: {name}={value!r}: one of {', '.join(known)}")
        if self.steps < 1:
            raise ValueError(f"row {self.key}: steps={self.steps} must be at least 1")
        if self.guidance < 1.0:
            raise ValueError(f"row {self.key}: guidance={self.guidance} must be at least 1 (1: none)")
        for name, scale in (("strength", self.strength), ("attnx_scale", self.attnx_scale)):
            if not 0.0 <= scale <= MOST_SCALE:  # NaN, too
                raise ValueError(f"row {self.key}: {name}={scale} must be 0 to {MOST_SCALE:g} (1: as trained)")

    @property
    def key(self) -> str:
        return f"{self.role}-{self.sampler}-{self.steps}"

    @property
    def label(self) -> str:
        """For a picture's column. It names the sampler unless it is a usual one of the role."""
        is_teachers = self.sampler == TEACHER_SAMPLER
        usual = {"teacher": is_teachers, "student": not is_teachers}.get(self.role, False)
        return f"{self.role} {self.steps}" if usual else f"{self.role} {self.steps} {self.sampler}"


@dataclass(frozen=True)
class SamplingInputs:
    """A batch and what all ways of sampling share: the shape of its latents, its random draws, its conditions."""

    batch: Batch
    draws: Draws
    latent_shape: tuple[int, ...]
    conditions: Conditions
    negative: Contexts | None


@dataclass(frozen=True)
class SampledBatch:
    """The result of one way of sampling for a batch: latent [B, z, h, w] float32, image [B, 3, H, W] float32 in [0, 1].

    nfe: evaluations of the UNet for each picture, two for a guided one. seconds: of WriteNet, UNet and decoder for the
    whole batch.
    """

    spec: SamplingSpec
    latent: torch.Tensor
    image: torch.Tensor
    nfe: int
    seconds: float


class SamplingPreparation:
    """Computes what all ways of sampling share for a batch (on the model's device), with frozen parts only.

    What no batch changes is computed once: the contexts of the negative prompt, and for each size the latent of a blank
    picture, which takes more arithmetic than a call of the UNet. negative_prompt: None if no row is guided; then
    nothing unconditional is computed.
    """

    def __init__(self, roles: SamplingRoles, seed: int, negative_prompt: str | None) -> None:
        self._model, self._seed = roles.model, seed
        self._blank: dict[torch.Size, torch.Tensor] = {}
        self._negative: Contexts | None = None
        if negative_prompt is not None:
            with torch.inference_mode():
                self._negative = self._model.negative_contexts(negative_prompt)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> SamplingInputs:
        masked = self._model.masked_latents(batch, None if all(batch.editing) else self._blank_latent(batch))
        conditions = self._model.encode_conditions(batch, masked)
        draws = Draws(self._seed, (0,) * batch.size, batch.index)
        return SamplingInputs(batch, draws, tuple(masked.shape[1:]), conditions, self._negative)

    def with_seed(self, seed: int) -> SamplingPreparation:
        """The same for another seed. What was computed already is shared."""
        twin = copy(self)
        twin._seed = seed
        return twin

    def _blank_latent(self, batch: Batch) -> torch.Tensor:
        size = batch.position.shape[-2:]
        if size not in self._blank:
            self._blank[size] = self._model.blank_latent(*size)
        return self._blank[size]


def prepare_sampling(roles: SamplingRoles, batch: Batch, seed: int, negative_prompt: str | None) -> SamplingInputs:
    """The `SamplingPreparation` of one batch alone."""
    return SamplingPreparation(roles, seed, negative_prompt)(batch)


def sample_batch(
    roles: SamplingRoles,
    inputs: SamplingInputs,
    specs: Sequence[SamplingSpec],
    schedule: NoiseSchedule,
    options: SamplerOptions = LCM_OPTIONS,
    on_step: OnStep | None = None,
) -> Iterator[SampledBatch]:
    """Samples the batch in every way of `specs`, all from the same noise.

    options: of all samplers; gamma is taken from each spec instead. on_step: may stop the sampling by an exception.
    """
    device = inputs.conditions.image_context.device
    start = inputs.draws.normal("start_noise", inputs.latent_shape, device)

    @cache
    def noise(step: int) -> torch.Tensor:
        return inputs.draws.normal(f"sampler_noise_{step}", inputs.latent_shape, device)

    prepared: dict[tuple[str, bool], _Prepared] = {}
    for spec in specs:
        role, is_guided = "student" if spec.role == "student" else "teacher", spec.guidance != 1.0
        with roles.teacher() if role == "teacher" else nullcontext(roles.model) as model, torch.inference_mode():
            if (role, is_guided) not in prepared:
                prepared[role, is_guided] = _prepare(model, inputs, is_guided)
            began = _now(device)
            predict = _Predict(model, prepared[role, is_guided].strengthened(spec.strength), spec, on_step)
            sampler, own = SAMPLERS[spec.sampler], replace(options, gamma=spec.gamma)
            latent = sampler(predict, start, spec.steps, schedule, noise, own)
            predict.end_step(latent)
            image = to_pictures(model, latent)
            seconds = predict.given.seconds + _now(device) - began
        yield SampledBatch(spec, latent, image, predict.evaluations, seconds)


def to_pictures(model: AnyText2, latent: torch.Tensor) -> torch.Tensor:
    """The pictures of latents [B, z, h, w], float32 [B, 3, H, W] in [0, 1]."""
    at_once = max(1, DECODED_CELLS // latent[0, 0].numel())
    return torch.cat([to_unit_range(model.decode(rows)) for rows in latent.split(at_once)])


class _Prepared(NamedTuple):
    """What all steps of a role share, of 2B rows with guidance, and the seconds that it took, the WriteNet's above all.

    projected: `AnyText2.project_context` of the conditions.
    """

    conditions: Conditions
    control: Control
    projected: ProjectedContext
    seconds: float

    def strengthened(self, strength: float) -> _Prepared:
        """With the control maps scaled, as by the strength of AnyText2."""
        return self if strength == 1.0 else self._replace(control=tuple(map_ * strength for map_ in self.control))


def _prepare(model: AnyText2, inputs: SamplingInputs, is_guided: bool) -> _Prepared:
    conditions = inputs.conditions
    if is_guided:
        assert inputs.negative is not None, "prepare_sampling needs a negative prompt for guided rows"
        conditions = with_negative(conditions, inputs.negative)
    device = conditions.image_context.device
    began = _now(device)
    control, projected = model.control_maps(conditions), model.project_context(conditions)
    return _Prepared(conditions, control, projected, _now(device) - began)


@dataclass
class _Predict:
    """The sampler's ``predict(x, t)``, which is called once a step. steps: begun so far."""

    model: AnyText2
    given: _Prepared
    spec: SamplingSpec
    on_step: OnStep | None
    steps: int = 0
    timestep: int = 0

    @property
    def evaluations(self) -> int:
        """Of the UNet so far."""
        return self.steps if self.spec.guidance == 1.0 else 2 * self.steps

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.steps:
            self.end_step(x)
        if self.on_step is not None:
            self.timestep = int(t[0])
        self.steps += 1
        conditions, control, projected, _ = self.given
        scale, attnx = self.spec.guidance, self.spec.attnx_scale
        if scale == 1.0:
            return predict_noise(self.model, x, t, conditions, control, projected, attnx)
        return predict_guided(self.model, x, t, conditions, control, scale, projected, attnx)

    def end_step(self, latent: torch.Tensor) -> None:
        """Reports the step that led to `latent`."""
        if self.on_step is not None:
            self.on_step(self.spec, self.steps - 1, self.timestep, latent)


def _now(device: torch.device) -> float:
    """Seconds on a clock that has waited for the accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
