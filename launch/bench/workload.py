"""One micro-step of a recipe, built without DeepSpeed, so that it can be measured and changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytext2.core.batch import collate
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.adapters.roles import AdapterRoles
from distill.config.schema import Recipe
from distill.data.batch_sampler import SampleKey
from distill.data.latents import LatentSource
from distill.data.loader import LoadedBatch
from distill.inference.loading import load_dataset
from distill.inference.model import make_model, make_schedule
from distill.training.build import make_objective, make_roles, negative_contexts
from distill.training.inputs import StepInputs
from distill.training.trainer import TrainingStep
from launch.bench.measure import MemoryGrowth, flop_counter, weight_bytes
from launch.bench.operations import OperationCounter, counted_module_calls, counted_reads

CONSTANT = 1e-3
_PICTURES = 16
_LEAST_SIZE = 128
"""Pixels of a drawn picture; a smaller resolution shrinks it."""


@dataclass(frozen=True)
class MicroStep:
    """One micro-step. `read` makes its input from a loaded batch and `loss` a scalar of that.

    network: whose weights are in memory. trained: the parameters that get a gradient. context: entered for the whole
    step, such as a saving that is switched off.
    """

    read: Callable[[], Any]
    loss: Callable[[Any], Tensor]
    network: nn.Module
    trained: tuple[nn.Parameter, ...]
    samples: int
    device: torch.device
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self) -> Tensor:
        """Input, forward and backward pass; returns the loss."""
        self.clear()
        with self.context():
            loss = self.loss(self.read())
            loss.backward()
        return loss.detach()

    def clear(self) -> None:
        """Removes the gradients."""
        for parameter in self.trained:
            parameter.grad = None

    def profile(self) -> dict[str, Any]:
        """What one step costs, its seconds apart; call the step once before, to fill what is kept for a whole run.

        inputs, forward, backward: operations. together: of forward and backward pass. module_calls: in both, and in the
        input. reads: values read to the host. flops: of a sample. weight_bytes, growth_bytes: tensors in memory before
        and, at most, during the step, beyond the weights.
        """
        self.clear()
        with self.context(), flop_counter() as flops, MemoryGrowth(self.device) as memory:
            with counted_reads() as reads, counted_module_calls() as modules:
                with OperationCounter() as inputs:
                    item = self.read()
                with OperationCounter() as forward:
                    loss = self.loss(item)
            with OperationCounter() as backward:
                loss.backward()
        parts = {"inputs": inputs, "forward": forward, "backward": backward}
        return {
            **{name: part.total for name, part in parts.items()},
            "together": forward.total + backward.total,
            "module_calls": modules.total(),
            "reads": reads.total(),
            "flops": flops.get_total_flops() // self.samples,
            "weight_bytes": weight_bytes(self.network),
            "growth_bytes": memory.peak,
            "by_name": {name: dict(part.counts.most_common()) for name, part in parts.items()},
            "reads_by_name": dict(reads),
        }


@dataclass(frozen=True)
class Workload:
    """A model with its roles, and one micro-batch with its latents, as the feature cache gives it."""

    recipe: Recipe
    roles: AdapterRoles
    loaded: LoadedBatch
    trained: tuple[nn.Parameter, ...]
    device: torch.device

    @property
    def samples(self) -> int:
        return self.loaded.batch.size

    def micro_step(self, recipe: Recipe | None = None) -> MicroStep:
        """The step of the recipe, or of another one that differs in the objective only."""
        recipe = recipe or self.recipe
        model = self.roles.model
        step = TrainingStep(self.roles.wrapped, make_objective(recipe, make_schedule(model.cfg)), self.roles)
        step.train()
        source = LatentSource(model, keep_in_memory=False)
        inputs = StepInputs(recipe.seed, self.device, source, negative_contexts(recipe, self.roles))
        return MicroStep(
            read=lambda: inputs(self.loaded, 0),
            loss=lambda item: step(item).loss,
            network=self.roles.wrapped,
            trained=self.trained,
            samples=self.samples,
            device=self.device,
        )


def make_workload(
    recipe: Recipe, batch: int, dtype: torch.dtype, folder: Path, device: torch.device, constant: bool = False
) -> Workload:
    """The model of the recipe and a micro-batch of drawn pictures of its resolution, which are kept in `folder`.

    constant: all weights are CONSTANT, for a size without weights at hand; they do not change what a step costs.
    """
    model = _constant_model(recipe, dtype) if constant else make_model(recipe.model, recipe.seed)
    roles, named = make_roles(model, make_objective(recipe, make_schedule(model.cfg)), recipe)
    roles.wrapped.to(device=device, dtype=dtype)
    loaded = with_latents(load_batch(recipe, batch, folder), roles.model, device)
    return Workload(recipe, roles, loaded, tuple(parameter for _, parameter in named), device)


@torch.no_grad()
def _constant_model(recipe: Recipe, dtype: torch.dtype) -> AnyText2:
    recompute = recipe.model.activation_checkpointing
    model = build_model(load_model_config(recipe.model.config), "meta", dtype, recompute).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(CONSTANT)
    return model


def load_batch(recipe: Recipe, count: int, folder: Path) -> LoadedBatch:
    """A micro-batch of drawn pictures, which are kept in `folder`."""
    size = max(recipe.data.options.resolution, _LEAST_SIZE)
    pictures = folder / f"pictures_{size}"
    if not (pictures / "data.json").is_file():
        write_dataset(pictures, _PICTURES, SyntheticConfig(size=size), seed=0)
    dataset, _ = load_dataset([pictures / "data.json"], recipe)
    keys = tuple(SampleKey(0, index) for index in range(count))
    return LoadedBatch(collate([dataset.sample(key.index, 0) for key in keys]), keys, Counter())


@torch.no_grad()
def with_latents(loaded: LoadedBatch, model: AnyText2, device: torch.device) -> LoadedBatch:
    """The batch with the latents of its pictures beside them."""
    batch = loaded.batch.to(device).normalized()
    posterior = torch.stack(model.posterior(batch.image), dim=1).cpu()
    return replace(
        loaded, batch=replace(loaded.batch, posterior=posterior, masked_latent=model.masked_latents(batch).cpu())
    )
