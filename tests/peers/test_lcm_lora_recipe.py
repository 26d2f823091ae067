"""The public recipe and our consistency objective have the same loss and gradient, by different calls."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from anytext2.core.batch import Batch
from anytext2.core.rng import Draws
from anytext2.model.anytext2 import AnyText2
from distill.adapters.lora import AdapterConfig, adapter_parameters, add_student
from distill.adapters.roles import STUDENT, AdapterRoles
from distill.inference.model import make_schedule
from distill.losses.step_input import StepInput
from distill.objectives.consistency import Consistency, ConsistencyConfig
from tests.helpers.models.mini_model import mini_batch, mini_model
from tests.helpers.models.parity import assert_same, normal
from tests.peers.lcm_lora_recipe import LcmLoraRecipe, Randoms, Settings

RANK = 4


def peer_parameters(recipe: LcmLoraRecipe) -> list[nn.Parameter]:
    return [parameter for _, parameter in adapter_parameters(recipe.student, STUDENT)]


@dataclass(frozen=True)
class Both:
    ours: Tensor
    our_gradients: list[Tensor]
    peers: Tensor
    peer_gradients: list[Tensor]


@pytest.fixture(scope="module")
def peer() -> LcmLoraRecipe:
    recipe = LcmLoraRecipe(mini_model(), Settings(rank=RANK, alpha=RANK))
    with torch.no_grad():
        for seed, parameter in enumerate(peer_parameters(recipe)):
            parameter.data = 0.2 * normal(*parameter.shape, seed=seed)
    return recipe


def draws_of(batch: Batch) -> Draws:
    return Draws(3, (0,) * batch.size, tuple(range(batch.size)))


def our_loss(batch: Batch, model: AnyText2, peer: LcmLoraRecipe) -> tuple[Tensor, list[Tensor]]:
    """Our objective with the peer's adapter."""
    wrapped = add_student(model, AdapterConfig(rank=RANK, alpha=RANK), seed=0)
    parameters = [parameter for _, parameter in adapter_parameters(wrapped, STUDENT)]
    for mine, theirs in zip(parameters, peer_parameters(peer), strict=True):
        mine.data = theirs.detach().clone()
    draws = draws_of(batch)
    with torch.no_grad():
        latent = model.encode(batch.image, draws.normal("posterior", model.latent_shape(*batch.image.shape[-2:])))
        item = StepInput(batch, draws, latent, model.masked_latents(batch))
    wrapped.train()
    loss = Consistency(ConsistencyConfig(), make_schedule(model.cfg)).loss(AdapterRoles(wrapped), item).loss
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


@pytest.fixture(scope="module")
def both(peer: LcmLoraRecipe) -> Both:
    batch = mini_batch()
    ours, our_gradients = our_loss(batch, mini_model(), peer)
    draws, shape = draws_of(batch), peer.frozen.latent_shape(*batch.image.shape[-2:])
    randoms = Randoms(
        posterior=draws.normal("posterior", shape),
        noise=draws.normal("consistency/noise", shape),
        index=draws.integers("consistency/t", 0, 50),
        guidance=draws.uniform("guidance", 5.0, 15.0),
    )
    loss = peer.loss(batch, randoms)
    return Both(ours, our_gradients, loss.detach(), list(torch.autograd.grad(loss, peer_parameters(peer))))


@pytest.mark.heavy
def test_the_loss_is_the_same(both: Both) -> None:
    assert both.ours.dtype == both.peers.dtype == torch.float64 and both.ours > 0
    torch.testing.assert_close(both.peers, both.ours, rtol=1e-5, atol=0)


@pytest.mark.heavy
def test_the_gradient_of_the_lora_is_the_same(both: Both) -> None:
    assert all(gradient.any() for gradient in both.our_gradients)
    assert_same(both.peer_gradients, both.our_gradients, 1e-5)


@pytest.mark.heavy
def test_two_networks_are_each_called_twice_with_control_maps_of_their_own(peer: LcmLoraRecipe) -> None:
    student = peer.student.get_base_model()
    weights = [{p.data_ptr() for n, p in net.named_parameters() if "lora_" not in n} for net in (student, peer.teacher)]
    assert not weights[0] & weights[1]
    calls: list[str] = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, part in {
            "student UNet": student.model.diffusion_model,
            "student WriteNet": student.control_model,
            "teacher UNet": peer.teacher.model.diffusion_model,
            "teacher WriteNet": peer.teacher.control_model,
        }.items()
    ]
    batch = mini_batch()
    peer.loss(batch, peer.random(batch))
    for hook in hooks:
        hook.remove()
    passes = ["student", "teacher", "teacher", "student"]
    assert calls == [f"{role} {part}" for role in passes for part in ("WriteNet", "UNet")]
