"""Channels-last weights: the same values, gradients and files, and no layout copies between the layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anytext2.core.batch import Conditions
from anytext2.core.files import write_safetensors
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.memory_format import to_channels_last, use_gpu_format
from anytext2.model.pseudo_weights import fill_with_pseudo_weights
from anytext2.model.weights import official_state_dict
from launch.bench.operations import OperationCounter

SIZE = 64


@pytest.fixture(scope="module")
def models() -> tuple[AnyText2, AnyText2]:
    """The same tiny model in both formats, float64, frozen."""
    pair = []
    for _ in range(2):
        model = build_model(load_model_config("tiny")).double().requires_grad_(False)
        fill_with_pseudo_weights(official_state_dict(model))
        pair.append(model)
    for network in networks(pair[1]):
        to_channels_last(network)
    return pair[0], pair[1]


def networks(model: AnyText2) -> list[nn.Module]:
    return [model.model.diffusion_model, model.control_model, model.first_stage_model]


def run(model: AnyText2) -> list[Tensor]:
    """Latent, control maps, noise and picture of fixed inputs, and the gradients of what can have one."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    latent, width, pages = model.latent_shape(SIZE, SIZE), model.cfg.unet.context_dim, (2, 1, SIZE, SIZE)
    conditions = Conditions(
        normal(2, 77, width), normal(2, 77, width), normal(*pages), normal(*pages), normal(2, *latent)
    )
    picture, x = normal(2, 3, SIZE, SIZE), normal(2, *latent)
    control = model.control_maps(conditions)
    noise = model.predict_noise(x, torch.tensor([3, 900]), conditions.image_context, control)
    outputs = [model.encode(picture), *control, noise, model.decode(noise)]
    wanted = [picture, x, *vars(conditions).values()]
    return [*outputs, *torch.autograd.grad(sum((y * y).mean() for y in outputs), wanted)]


@pytest.mark.heavy
def test_values_and_gradients_are_the_same(models: tuple[AnyText2, AnyText2]) -> None:
    for given, wanted in zip(run(models[1]), run(models[0]), strict=True):
        assert torch.allclose(given, wanted, rtol=1e-9, atol=1e-9 * float(wanted.detach().abs().max()))


def test_only_what_comes_from_outside_is_converted(models: tuple[AnyText2, AnyText2]) -> None:
    """Every other input of a convolution or a group norm has the format already; and nothing else is copied."""
    model = models[1]
    names = {module: name for name, module in model.named_modules()}
    converted: Counter[str] = Counter()

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if not inputs[0].is_contiguous(memory_format=torch.channels_last):
            converted[names[module]] += 1

    layers = [m for network in networks(model) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.GroupNorm))]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    with OperationCounter() as operations:
        run(model)
    for handle in handles:
        handle.remove()
    firsts = {
        "first_stage_model.encoder.conv_in",
        "control_model.input_blocks.0.0",
        "model.diffusion_model.input_blocks.0.0",
    }
    assert set(converted) == firsts
    assert operations.counts["aten.clone"] <= 2, operations.counts  # of the latents


def test_trained_weights_and_models_on_a_cpu_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3).requires_grad_(False))
    to_channels_last(network)
    assert [conv.weight.is_contiguous() for conv in network] == [True, False]
    model = build_model(load_model_config("tiny"))
    use_gpu_format(model)
    assert all(p.is_contiguous() for p in model.parameters())


def test_files_do_not_show_the_format(models: tuple[AnyText2, AnyText2], tmp_path: Path) -> None:
    for model, name in zip(models, ("before", "after"), strict=True):
        write_safetensors(tmp_path / name, model.state_dict())
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    assert load_file(tmp_path / "after").keys() == models[0].state_dict().keys()
