"""Samples without a dataset, and a noise predictor of one convolution with AnyText2's contract, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from anytext2.core.batch import Batch, Conditions, Contexts, Sample, collate
from anytext2.core.rng import Draws
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.step_input import StepInput
from tests.helpers.models.stub_roles import make_sample

SCHEDULE = NoiseSchedule.scaled_linear()
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SIZE, CELLS, CHANNELS = 32, 4, 3


def sample(index: int, n_lines: int = 2) -> Sample:
    """A sample with a caption, and ignored text at the lower left, that depend on its index."""
    ignored = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    ignored[:, 24:, : 8 + 8 * (index % 2)] = 1
    plain = make_sample(index, tuple("ABC"[:n_lines]), size=SIZE)
    return replace(plain, inverse_mask=ignored, image_caption="a picture " * (index + 1))


class Stub(nn.Module):
    """A noise predictor of one convolution with an adapter on both its UNet and its WriteNet, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet, self.unet_lora, self.writer, self.writer_lora = (
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, dtype=torch.float64) for _ in range(4)
        )
        self.adapters = True
        self.calls: list[str] = []

    def encode_conditions(self, batch: Batch, masked_latent: torch.Tensor) -> Conditions:
        self.calls.append("encode_conditions")
        length = torch.tensor([len(caption) / 100 for caption in batch.image_caption], dtype=torch.float64)
        return Conditions(
            image_context=length.reshape(-1, 1, 1).expand(-1, 2, CHANNELS).clone(),
            text_context=2 * length.reshape(-1, 1, 1).expand(-1, 1, CHANNELS).clone(),
            glyph=batch.glyph.double(),
            position=batch.position.sum(1, keepdim=True).double(),
            masked_latent=masked_latent,
        )

    def negative_contexts(self, negative_prompt: str = "") -> Contexts:
        self.calls.append("negative_contexts")
        nothing = torch.full((1, 1, CHANNELS), -0.3 - len(negative_prompt), dtype=torch.float64)
        return Contexts(nothing, nothing)

    def masked_latents(self, batch: Batch) -> torch.Tensor:
        return torch.full((batch.size, CHANNELS, CELLS, CELLS), 0.25, dtype=torch.float64)

    def control_maps(self, conditions: Conditions) -> tuple[torch.Tensor, ...]:
        self.calls.append("control_maps")
        page = F.avg_pool2d(conditions.glyph, SIZE // CELLS) + conditions.text_context.mean((1, 2)).reshape(-1, 1, 1, 1)
        hint = conditions.masked_latent + page
        return (self.writer(hint) + (self.writer_lora(hint) if self.adapters else 0),)

    def project_context(self, conditions: Conditions) -> torch.Tensor:
        return conditions.image_context

    def predict_noise(
        self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        self.calls.append("unet")
        h = torch.tanh(x) + context.mean((1, 2)).reshape(-1, 1, 1, 1) + control[0]
        h = self.unet(h) + (self.unet_lora(h) if self.adapters else 0)
        return h * (0.5 + t.to(x.dtype) / 1000).reshape(-1, 1, 1, 1)


class StubRoles:
    def __init__(self) -> None:
        self.model: Any = Stub()

    @contextmanager
    def teacher(self) -> Iterator[Stub]:
        self.model.adapters = False
        with torch.inference_mode():
            yield self.model
        self.model.adapters = True

    @contextmanager
    def target(self) -> Iterator[None]:
        with torch.inference_mode():
            yield


def step_input(count: int = 3, seed: int = 7) -> StepInput:
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():  # as the trainer makes them
        latent = torch.randn(count, CHANNELS, CELLS, CELLS, generator=generator, dtype=torch.float64)
    batch = collate([sample(index) for index in range(count)])
    return StepInput(batch, Draws(seed, (0,) * count, tuple(range(count))), latent)


def coefficients(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    abar = torch.from_numpy(ABAR)[t].reshape(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def parameter_gradients(loss: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    """d loss / d parameter for every parameter, zeros for those that it does not depend on."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]
