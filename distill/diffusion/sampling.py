"""Samples one batch by teacher or student in any of several ways, all from the same start noise.

A way of sampling is a `SamplingSpec`: role (teacher, the same weights undistilled at few steps, student), sampler,
steps and guidance. The WriteNet's maps depend on neither noise nor time, so they are computed once for each batch and
role.

Shape legend: B batch, z latent channels, h/w latent cells, H/W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from anytext2.core.batch import Batch, Conditions, Control
from anytext2.core.rng import Draws
from distill.adapters.roles import Roles, predict_noise
from distill.diffusion.samplers import LCM_OPTIONS, SAMPLERS, TEACHER_SAMPLER, Predict, SamplerOptions, guided
from distill.diffusion.schedule import NoiseSchedule
from distill.viz.grids import to_unit_range

Role = Literal["teacher", "undistilled", "student"]


@dataclass(frozen=True)
class SamplingSpec:
    """One way of sampling.

    sampler: a name in `SAMPLERS`. guidance: the usual scale, e = u + guidance (c - u); 1 means none, at half the cost.
    gamma: of the trajectory sampler.
    """

    role: Role
    sampler: str
    steps: int
    guidance: float = 1.0
    gamma: float = 0.3

    def __post_init__(self) -> None:
        for name, value, known in (("role", self.role, get_args(Role)), ("sampler", self.sampler, SAMPLERS)):
            if value not in known:
                raise ValueError(f"row {self.key}: {name}={value!r}: one of {', '.join(known)}")
        if self.steps < 1:
            raise ValueError(f"row {self.key}: steps={self.steps} must be at least 1")
        if self.guidance < 1.0:
            raise ValueError(f"row {self.key}: guidance={self.guidance} must be at least 1 (1: none)")

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
    unconditional: Conditions | None


@dataclass(frozen=True)
class SampledBatch:
    """The result of one way of sampling for a batch: latent [B, z, h, w] float32, image [B, 3, H, W] float32 in [0, 1].

    nfe: UNet calls; seconds: of WriteNet, UNet and decoder for the whole batch.
    """

    spec: SamplingSpec
    latent: torch.Tensor
    image: torch.Tensor
    nfe: int
    seconds: float


def prepare_sampling(
    roles: Roles, batch: Batch, seed: int, negative_prompt: str | None, epoch: int = 0
) -> SamplingInputs:
    """Computes what all ways of sampling share for `batch` (on the model's device), with frozen parts only.

    negative_prompt: None if no row is guided; then nothing unconditional is computed.
    """
    model = roles.model
    with roles.teacher():
        masked = model.masked_latents(batch)
        conditions = model.encode_conditions(batch, masked)
        unconditional = None if negative_prompt is None else model.unconditional(conditions, batch, negative_prompt)
    draws = Draws(seed, (epoch,) * batch.size, batch.index)
    return SamplingInputs(batch, draws, tuple(masked.shape[1:]), conditions, unconditional)


def sample_batch(
    roles: Roles,
    inputs: SamplingInputs,
    specs: Sequence[SamplingSpec],
    schedule: NoiseSchedule,
    options: SamplerOptions = LCM_OPTIONS,
) -> Iterator[SampledBatch]:
    """Samples the batch in every way of `specs`, all from the same noise.

    options: of all samplers; gamma is taken from each spec instead.
    """
    device = inputs.conditions.image_context.device
    start = inputs.draws.normal("start_noise", inputs.latent_shape, device)

    def noise(step: int) -> torch.Tensor:
        return inputs.draws.normal(f"sampler_noise_{step}", inputs.latent_shape, device)

    maps: dict[tuple[str, bool], tuple[Control, float]] = {}

    def control(role: str, conditions: Conditions, with_text: bool) -> tuple[Control, float]:
        key = (role, with_text)
        if key not in maps:
            began = _now(device)
            value = roles.model.control_maps(conditions)
            maps[key] = value, _now(device) - began
        return maps[key]

    for spec in specs:
        adapters = "student" if spec.role == "student" else "teacher"
        with roles.teacher() if adapters == "teacher" else torch.inference_mode():
            conditional, seconds = control(adapters, inputs.conditions, True)
            counted = _Counted(roles.model, inputs.conditions, conditional)
            predict: Predict = counted
            calls = [counted]
            if spec.guidance != 1.0:
                assert inputs.unconditional is not None, "prepare_sampling needs a negative prompt for guided rows"
                without, more = control(adapters, inputs.unconditional, False)
                calls.append(_Counted(roles.model, inputs.unconditional, without))
                predict, seconds = guided(counted, calls[1], spec.guidance), seconds + more
            began = _now(device)
            sampler, own = SAMPLERS[spec.sampler], replace(options, gamma=spec.gamma)
            latent = sampler(predict, start, spec.steps, schedule, noise, own)
            image = to_unit_range(roles.model.decode(latent))
            seconds += _now(device) - began
        yield SampledBatch(spec, latent, image, sum(c.calls for c in calls), seconds)


class _Counted:
    """predict(x, t) -> eps of fixed conditions, counting its calls."""

    def __init__(self, model: Any, conditions: Conditions, control: Control) -> None:
        self.model, self.conditions, self.control, self.calls = model, conditions, control, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return predict_noise(self.model, x, t, self.conditions, self.control)


def _now(device: torch.device) -> float:
    """Seconds on a clock that has waited for the accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
