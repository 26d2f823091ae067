"""The distance of the teacher's noise under fp16 accumulation. A CPU has no such switch, so it is imitated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytext2.core.batch import Conditions
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.pseudo_weights import fill_with_pseudo_weights
from anytext2.model.weights import official_state_dict
from distill.adapters.roles import AdapterRoles
from distill.checks.teacher_precision import ACCUMULATION_LIMIT, accumulation_distance, check_accumulation

SIZE = 32


@pytest.fixture
def model() -> AnyText2:
    model = build_model(load_model_config("tiny")).requires_grad_(False)
    fill_with_pseudo_weights(official_state_dict(model))
    return model


def inputs(model: AnyText2) -> tuple[torch.Tensor, Conditions]:
    latent = torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    context, page = torch.ones(1, 77, model.cfg.unet.context_dim), torch.ones(1, 1, SIZE, SIZE)
    return latent, Conditions(context, context, page, page, latent)


def imitate_accumulation(model: AnyText2, error: float) -> list[bool]:
    """The last convolution's output is off by a share of it wherever the switch is on; returns the switch's values."""
    seen: list[bool] = []

    def change(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cuda.matmul.allow_fp16_accumulation)
        return output * (1 + error) if seen[-1] else output

    model.model.diffusion_model.out[2].register_forward_hook(change)
    return seen


@pytest.mark.heavy
@pytest.mark.parametrize("option", [False, True])
def test_the_distance_is_that_between_both_settings_whatever_the_recipe_says(model: AnyText2, option: bool) -> None:
    seen = imitate_accumulation(model, 0.003)
    assert accumulation_distance(AdapterRoles(model, option), *inputs(model)) == pytest.approx(0.003, rel=1e-3)
    assert seen == [False, True] * 3 and not torch.backends.cuda.matmul.allow_fp16_accumulation


@pytest.mark.heavy
def test_a_teacher_that_moves_too_far_is_found(model: AnyText2) -> None:
    roles, given = AdapterRoles(model, True), inputs(model)
    assert list(check_accumulation(roles, *given)) == []
    imitate_accumulation(model, 3 * ACCUMULATION_LIMIT)
    assert [str(finding) for finding in check_accumulation(roles, *given)] == [
        "train.teacher_fp16_accumulation: true: moves the teacher's noise by 3.00% on this device, more than 1%; "
        "set it to false"
    ]
