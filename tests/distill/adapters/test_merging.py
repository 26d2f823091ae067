"""A student whose adapter is merged into its weights samples as it did before, and has none of PEFT's layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.merging import MergedRoles
from distill.adapters.roles import AdapterRoles
from distill.diffusion.samplers import SAMPLERS
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from tests.helpers.models.mini_model import mini_batch, mini_model

ADAPTERS = [("lora", "all"), ("rslora", "paper"), ("dora", "all")]
SPECS = [*(SamplingSpec("student", name, 3, gamma=0.5) for name in SAMPLERS), SamplingSpec("student", "ddim", 2, 2.0)]


@torch.no_grad()
def student(kind: str, targets: str, dtype: torch.dtype) -> nn.Module:
    """A student with random matrices; DoRA's lengths are changed by up to a half."""
    config = AdapterConfig(kind=kind, rank=4, alpha=6, targets=targets)
    wrapped = add_student(mini_model().eval(), config, seed=0).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.copy_(parameter * (1 + 0.5 * noise.tanh()) if "magnitude" in name else 0.3 * noise)
    return wrapped


def latents(roles: AdapterRoles | MergedRoles, specs: list[SamplingSpec]) -> dict[str, torch.Tensor]:
    inputs = prepare_sampling(roles, mini_batch(), seed=3, negative_prompt="blurred")
    sampled = sample_batch(roles, inputs, specs, NoiseSchedule.scaled_linear())
    return {f"{one.spec.key} {one.spec.guidance}": one.latent for one in sampled}


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "targets"), ADAPTERS)
def test_every_sampler_draws_as_without_merging(kind: str, targets: str) -> None:
    wrapped = student(kind, targets, torch.float32)
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    plain, merged = AdapterRoles(wrapped), MergedRoles(wrapped, keep_teacher=True)  # type: ignore[arg-type]
    wanted, found = latents(plain, SPECS), latents(merged, SPECS)
    for name, latent in wanted.items():
        torch.testing.assert_close(found[name], latent, rtol=1e-5, atol=1e-5 * float(latent.abs().max()), msg=name)
    teacher = [SamplingSpec("teacher", "ddim", 2, 3.0)]
    assert all(torch.equal(latents(merged, teacher)[name], one) for name, one in latents(plain, teacher).items())
    bare = latents(merged, [replace(SPECS[0], role="undistilled")])
    assert not torch.allclose(next(iter(bare.values())), next(iter(wanted.values())), atol=1e-2)
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapped.state_dict().items())


@pytest.mark.heavy
@pytest.mark.parametrize(("kind", "targets"), ADAPTERS)
def test_the_weights_are_exact_and_rounded_once(kind: str, targets: str) -> None:
    """A merged layer equals PEFT's own to 1e-10 in float64, and to 1e-5 with its weight in float32."""
    wrapped = student(kind, targets, torch.float64)
    merged = MergedRoles(wrapped, keep_teacher=False).model  # type: ignore[arg-type]
    half = MergedRoles(student(kind, targets, torch.float32), keep_teacher=False).model  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    adapted = [(n, m) for n, m in wrapped.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in adapted:
        weight = layer.get_base_layer().weight
        shape = (5, weight.shape[1]) if weight.ndim == 2 else (2, weight.shape[1], 6, 6)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        plain = merged.get_submodule(name)
        torch.testing.assert_close(plain(x), layer(x), rtol=1e-10, atol=1e-10, msg=name)
        assert half.get_submodule(name).weight.dtype == torch.float32
        torch.testing.assert_close(half.get_submodule(name)(x.float()).double(), layer(x), rtol=1e-5, atol=1e-5)


def test_only_adapted_layers_have_weights_of_their_own() -> None:
    wrapped = student("lora", "decoder", torch.float32)
    roles = MergedRoles(wrapped, keep_teacher=True)  # type: ignore[arg-type]
    adapted = {n for n, m in wrapped.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}
    with roles.teacher() as teacher:
        assert torch.is_inference_mode_enabled()
    for network in roles.networks:
        assert not any(isinstance(module, BaseTunerLayer) for module in network.modules())
        network.to(torch.float16)
    theirs = dict(teacher.named_parameters())
    own = {name for name, p in roles.model.named_parameters() if p.data_ptr() != theirs[name].data_ptr()}
    assert adapted and {name.removesuffix(".weight").removesuffix(".bias") for name in own} == adapted
    assert all(p.dtype == torch.float16 for network in roles.networks for p in network.parameters())


def test_a_teacher_that_was_not_kept_is_refused() -> None:
    roles = MergedRoles(student("lora", "decoder", torch.float32), keep_teacher=False)  # type: ignore[arg-type]
    assert roles.networks == [roles.model]
    with pytest.raises(ValueError, match="the teacher's weights were not kept"), roles.teacher():
        pass
