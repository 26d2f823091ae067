"""`make bench`: launch/bench/bench.py with the public recipe beside ours.

The recipe is not part of the product, so it lives in tests/, and nothing in launch/ may import tests/. Therefore this
module is the command, and hands the recipe to the benchmark.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from anytext2.core.batch import Batch
from distill.adapters.roles import without_adapters
from launch.bench.bench import main
from launch.bench.workload import MicroStep, Workload
from tests.peers.lcm_lora_recipe import LcmLoraRecipe, Randoms, Settings


def public_recipe(workload: Workload) -> MicroStep:
    """A step of the public recipe: online encoding, and our frozen weights as its teacher."""
    lora = workload.recipe.lora
    settings = Settings(rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    recipe = LcmLoraRecipe(without_adapters(workload.roles.model), settings)

    def read() -> tuple[Batch, Randoms]:
        batch = workload.loaded.batch.to(workload.device, non_blocking=True).normalized()
        batch = replace(batch, posterior=None, masked_latent=None)
        return batch, recipe.random(batch)

    def loss(item: tuple[Batch, Randoms]) -> torch.Tensor:
        return recipe.loss(*item)

    trained = tuple(parameter for parameter in recipe.parameters() if parameter.requires_grad)
    return MicroStep(read, loss, recipe, trained, workload.samples, workload.device)


if __name__ == "__main__":
    raise SystemExit(main(peers={"public recipe": public_recipe}))
