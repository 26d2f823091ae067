"""The networks on a GPU: its memory format, its sampled pictures, its matrix products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anytext2.core.batch import Batch, Conditions
from anytext2.model.anytext2 import AnyText2
from anytext2.model.memory_format import to_channels_last
from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import AdapterRoles
from distill.checks.teacher_precision import accumulation_distance
from distill.config.schema import ModelConfig
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.inference.model import make_model, make_schedule
from tests.helpers.models.mini_model import mini_batch, mini_model
from tests.helpers.models.parity import assert_same

pytestmark = [pytest.mark.gpu, pytest.mark.heavy]

SIZE = 32
TOLERANCE = 2e-3
"""Of float32 on two devices, relative to the largest value."""


def inputs(model: AnyText2) -> tuple[Conditions, Tensor, Tensor]:
    """Conditions, a picture and a latent, with gradients, in the model's dtype and on its device."""
    generator = torch.Generator().manual_seed(0)
    like = next(model.parameters())

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(like).requires_grad_()

    latent, width, pages = model.latent_shape(SIZE, SIZE), model.cfg.unet.context_dim, (2, 1, SIZE, SIZE)
    contexts = (normal(2, 77, width), normal(2, 77, width))
    conditions = Conditions(*contexts, normal(*pages), normal(*pages), normal(2, *latent))
    return conditions, normal(2, 3, SIZE, SIZE), normal(2, *latent)


def values_and_gradients(model: AnyText2) -> list[Tensor]:
    conditions, picture, x = inputs(model)
    control = model.control_maps(conditions)
    noise = model.predict_noise(x, torch.tensor([3, 900], device=x.device), conditions.image_context, control)
    outputs = [model.encode(picture), *control, noise, model.decode(noise)]
    wanted = [picture, x, *vars(conditions).values()]
    return [*outputs, *torch.autograd.grad(sum(((y * y).mean() for y in outputs), torch.tensor(0.0)), wanted)]


def test_channels_last_has_the_values_and_gradients_of_the_plain_format(device: torch.device) -> None:
    model = mini_model().float().to(device).requires_grad_(False)
    expected = values_and_gradients(model)
    for network in (model.model.diffusion_model, model.control_model, model.first_stage_model):
        to_channels_last(network)
    assert_same(values_and_gradients(model), expected, TOLERANCE)


@pytest.mark.parametrize(
    "spec",
    [SamplingSpec("student", "ddim", 4), SamplingSpec("teacher", "ddim", 4, 2.0)],
    ids=["student", "guided teacher"],
)
def test_sampled_latents_are_those_of_the_cpu(device: torch.device, spec: SamplingSpec) -> None:
    expected, found = (sampled_latent(torch.device(kind), spec) for kind in ("cpu", device.type))
    assert_same([found], [expected], 10 * TOLERANCE)


def sampled_latent(device: torch.device, spec: SamplingSpec) -> Tensor:
    model = mini_model()
    wrapped = add_student(model, AdapterConfig(rank=2, alpha=2), seed=0)
    for seed, (name, p) in enumerate(wrapped.named_parameters()):
        if ".lora_" in name:
            torch.nn.init.normal_(p, 0.0, 0.05, generator=torch.Generator().manual_seed(seed))
    wrapped.float().to(device)
    roles = AdapterRoles(wrapped)
    batch: Batch = mini_batch().to(device).normalized()
    prepare = SamplingPreparation(roles, 0, "blurred")
    (sampled,) = sample_batch(roles, prepare(batch), [spec], make_schedule(model.cfg))
    return sampled.latent.cpu()


def test_fp16_accumulation_moves_the_teacher_little(device: torch.device) -> None:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = make_model(ModelConfig(), 0).to(device=device, dtype=dtype).requires_grad_(False)
    conditions, _, x = inputs(model)
    with torch.no_grad():
        distance = accumulation_distance(AdapterRoles(model), x.detach().float(), conditions.map(torch.Tensor.detach))
    assert 0.0 <= distance < 0.05
