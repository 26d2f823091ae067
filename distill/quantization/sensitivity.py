"""How much each layer suffers from 8 bits: the distance of eps and of the whole picture when it alone is quantised.

Shape legend: B batch, z latent channels, h/w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from anytext2.model.anytext2 import AnyText2
from distill.adapters.roles import SamplingRoles, predict_noise
from distill.diffusion.samplers import SamplerOptions
from distill.diffusion.sampling import SamplingInputs, SamplingSpec, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.quantization.int8 import first_tokens, quantizable_layers, quantized_layer, replace_layer


@dataclass(frozen=True)
class LayerSensitivity:
    """A layer that alone was quantised.

    eps: relative distance of eps at the states of the student's own sampling, |eps' - eps| / |eps|. picture: RMSE of
    the sampled pictures in grey levels of 255. weights: number of its weights.
    """

    layer: str
    eps: float
    picture: float
    weights: int

    @property
    def cost(self) -> float:
        """What is lost by quantising it, for each weight that it makes smaller."""
        return self.picture / self.weights

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trajectory:
    """The student's own sampling: the latents [B, z, h, w] and timesteps at which eps is asked, eps, and pictures."""

    states: tuple[tuple[Tensor, Tensor], ...]
    eps: tuple[Tensor, ...]
    image: Tensor


class SensitivityProbe:
    """Samples a batch with a model again and again, and measures how far it is from the first time."""

    def __init__(
        self,
        roles: SamplingRoles,
        inputs: SamplingInputs,
        spec: SamplingSpec,
        schedule: NoiseSchedule,
        options: SamplerOptions,
    ) -> None:
        """spec: the student's way of sampling. The model is that of `roles`, unquantised."""
        self.roles, self.inputs, self.spec = roles, inputs, spec
        self._sample = lambda on_step: next(sample_batch(roles, inputs, [spec], schedule, options, on_step))
        self.reference = self._trajectory()

    def _trajectory(self) -> Trajectory:
        steps: list[tuple[int, Tensor]] = []
        sampled = self._sample(lambda _spec, _number, timestep, latent: steps.append((timestep, latent.clone())))
        start = self.inputs.draws.normal("start_noise", self.inputs.latent_shape, sampled.latent.device)
        latents = [start, *(latent for _, latent in steps[:-1])]
        states = tuple(
            (latent, torch.full((len(latent),), timestep, device=latent.device))
            for latent, (timestep, _) in zip(latents, steps, strict=True)
        )
        return Trajectory(states, self._predicted(states), sampled.image)

    @torch.inference_mode()
    def _predicted(self, states: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        model, conditions = self.roles.model, self.inputs.conditions
        control, projected = model.control_maps(conditions), model.project_context(conditions)
        return tuple(predict_noise(model, x, t, conditions, control, projected) for x, t in states)

    def distances(self) -> tuple[float, float]:
        """The distances of eps and of the pictures of the model as it is now, see `LayerSensitivity`."""
        eps, wanted = torch.stack(self._predicted(self.reference.states)), torch.stack(self.reference.eps)
        relative = float((eps - wanted).norm() / wanted.norm())
        image = self._sample(None).image
        return relative, 255.0 * float((image - self.reference.image).square().mean().sqrt())


def measure_layers(
    model: AnyText2, probe: SensitivityProbe, progress: Callable[[int, int], None] | None = None
) -> list[LayerSensitivity]:
    """Quantises each layer alone and measures; the layers that suffer most come first. The model is left as it was."""
    layers, first = quantizable_layers(model), first_tokens(model)
    found = []
    for number, (path, layer) in enumerate(layers.items(), start=1):
        replace_layer(model, path, quantized_layer(path, layer, first))
        try:
            found.append(LayerSensitivity(path, *probe.distances(), layer.weight.numel()))
        finally:
            replace_layer(model, path, layer)
        if progress is not None:
            progress(number, len(layers))
    return sorted(found, key=lambda one: -one.picture)


def layers_to_keep(found: Sequence[LayerSensitivity], share: float) -> list[str]:
    """The layers that cost most for their size, which together have at most `share` of all weights."""
    room, kept = share * sum(one.weights for one in found), []
    for one in sorted(found, key=lambda one: -one.cost):
        if one.weights <= room:
            kept.append(one.layer)
            room -= one.weights
    return kept
