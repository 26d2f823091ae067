"""Whole micro-steps and trainings on the fast path: the losses, gradients and checkpoints of the slow one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from anytext2.core.rng import Draws
from distill.adapters.lora import AdapterConfig, add_adapter, add_student
from distill.adapters.roles import EMA, AdapterRoles
from distill.compilation.blocks import BlockPrograms
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import Switch
from distill.compilation.setup import step_networks
from distill.losses.step_input import StepInput
from distill.objectives import OBJECTIVES
from tests.helpers.models import stub_model
from tests.helpers.models.mini_model import mini_batch, mini_model
from tests.helpers.models.parity import assert_same, normal
from tests.helpers.models.rerun import Rerun
from tests.helpers.processes.ranks import returned, run_ranks
from tests.helpers.processes.train_patches import train_on_fast_path, train_with_overflows
from tests.helpers.processes.training_runs import TrainingFolder, last_tensors

OPTIONS = {"w_min": 2.0, "w_max": 4.0, "target_ema": True}


def roles_with_average() -> tuple[AdapterRoles, StepInput]:
    """Student and average with random adapters, which differ, and a micro-batch."""
    model = mini_model()
    wrapped = add_student(model, AdapterConfig(rank=2, alpha=2), seed=0)
    add_adapter(wrapped, EMA, trained=False, seed=1)
    for seed, (name, p) in enumerate(wrapped.named_parameters()):
        if ".lora_" in name:
            torch.nn.init.normal_(p, 0.0, 0.05, generator=torch.Generator().manual_seed(seed))
    wrapped.double().train()
    batch = mini_batch()
    lines = normal(sum(batch.n_lines), model.cfg.text_encoder.width)  # the recognisers would take most of the time
    model.embedding_manager.forward = lambda *_: lines  # type: ignore[method-assign]
    with torch.inference_mode():
        latent, masked = model.encode(batch.image), model.masked_latents(batch)
    return AdapterRoles(wrapped), StepInput(batch, Draws(1, (0,) * 3, (0, 1, 2)), latent.clone(), masked.clone())


def losses_and_gradients(path: Switch, roles: AdapterRoles, item: StepInput) -> list[torch.Tensor]:
    """Of two micro-steps, whose gradients are added up, with a step of the weights between them."""
    objective = OBJECTIVES["consistency"](OBJECTIVES["consistency"].Config(**OPTIONS), stub_model.SCHEDULE)
    trained = [p for p in roles.wrapped.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    found = []
    for _ in range(2):
        with path.active():
            output = objective.loss(roles, item)
            output.loss.backward()
        found.append(output.per_sample.detach())
        with torch.no_grad():
            for p in trained:
                p.add_(0.01)
    found += [p.grad for p in trained if p.grad is not None]
    for p, before in zip(trained, kept, strict=True):
        p.data.copy_(before)
        p.grad = None
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "recompute"), [("graphs", "none"), ("blocks", "all")])
def test_a_micro_step_has_the_same_loss_and_gradients(kind: str, recompute: str) -> None:
    roles, item = roles_with_average()
    roles.model.control_model.activation_checkpointing = recompute
    roles.model.model.diffusion_model.activation_checkpointing = recompute
    expected = losses_and_gradients(Switch(), roles, item)
    if kind == "blocks":
        path: Any = BlockPrograms(pytest.fail, "aot_eager")
        path.compile(step_networks(roles))
    else:
        path = GraphedCalls(Rerun(), pytest.fail, lambda: roles.active)
        path.capture([*step_networks(roles), roles.model.cond_stage_model.tower.transformer])
    found = losses_and_gradients(path, roles, item)
    assert len(found) > 20
    assert_same(found, expected, 1e-9)
    if kind == "graphs":  # text tower, for captions and negative prompt; WriteNet and UNet of three roles
        assert path.count == 2 + 2 * 3


SETTINGS = [
    *("train.effective_batch=4", "train.micro_batch=1", "train.max_steps=4", "train.ema_decay=0.5"),
    *("data.buckets=[64,128]", "data.part=all", "checkpoint.save_steps=0"),
]
"""Four updates of two micro-batches on each of two ranks, in both picture sizes."""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "recompute"), [("graphs", "none"), ("blocks", "all")])
def test_a_training_on_two_ranks_in_two_sizes_is_the_same_and_resumes_exactly(
    tmp_path: Path, kind: str, recompute: str
) -> None:
    runs = TrainingFolder.create(tmp_path, 16)
    settings = [*SETTINGS, f"model.activation_checkpointing={recompute}"]
    returned(run_ranks(2, train_with_overflows, runs.argv("eager", *settings), (), 0))
    for name, stop in (("whole", 0), ("stopped", 2)):
        returned(run_ranks(2, train_on_fast_path, runs.argv(name, *settings), kind, stop))
    shutil.copytree(runs.run_dir("stopped"), runs.run_dir("resumed"))
    returned(run_ranks(2, train_on_fast_path, runs.argv("resumed", *settings), kind, 0))
    whole, resumed, eager = (last_tensors(runs.run_dir(name), 4) for name in ("whole", "resumed", "eager"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert whole.keys() == eager.keys()
    assert runs.metrics("whole") == pytest.approx(runs.metrics("eager"), rel=1e-4)
