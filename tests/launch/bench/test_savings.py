"""Switching a saving off changes what a micro-step costs, and not its loss."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from distill.config.recipes import find_recipe, load_recipe
from launch.bench.bench import PRODUCTION
from launch.bench.savings import SAVINGS
from launch.bench.workload import MicroStep, make_workload
from tests.helpers.models.mini_model import write_mini

ONLY_CALLS = ("teacher without LoRA layers",)
"""A disabled LoRA layer dispatches no operation, but its module is called."""


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> MicroStep:
    """The consistency objective, which calls teacher, student and target; the student differs from its teacher."""
    folder = tmp_path_factory.mktemp("bench")
    overrides = [
        *write_mini(folder),
        "data.options.resolution=64",
        "objective.name=consistency",
        "objective.teacher_steps=2",
        "lora.rank=4",
    ]
    workload = make_workload(
        load_recipe(find_recipe(PRODUCTION), overrides), 2, torch.float64, folder, torch.device("cpu")
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in workload.trained:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return workload.micro_step()


@pytest.fixture(scope="module")
def usual(step: MicroStep) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, Any]]:
    loss = step()
    gradients = [parameter.grad.clone() for parameter in step.trained if parameter.grad is not None]
    return loss, gradients, step.profile()


@pytest.mark.heavy
@pytest.mark.parametrize("name", list(SAVINGS))
def test_the_loss_stays_and_the_cost_grows(
    name: str, step: MicroStep, usual: tuple[torch.Tensor, list[torch.Tensor], dict[str, Any]]
) -> None:
    loss, gradients, cost = usual
    other = replace(step, context=SAVINGS[name])
    torch.testing.assert_close(other(), loss, rtol=1e-5, atol=0)
    for parameter, gradient in zip(step.trained, gradients, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() <= 1e-5 * gradient.norm()
    found = other.profile()
    if name in ONLY_CALLS:
        assert found["module_calls"] > cost["module_calls"]
    else:
        assert found["inputs"] + found["together"] > cost["inputs"] + cost["together"]


@pytest.mark.heavy
def test_a_switch_leaves_nothing_behind(
    step: MicroStep, usual: tuple[torch.Tensor, list[torch.Tensor], dict[str, Any]]
) -> None:
    for off in SAVINGS.values():
        with contextlib.suppress(KeyError), off():
            raise KeyError
    counts = ("inputs", "forward", "backward", "module_calls", "reads", "flops")
    found = step.profile()
    assert {key: found[key] for key in counts} == {key: usual[2][key] for key in counts}
