"""The fast path of a run, chosen by train.compile."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from distill.adapters.roles import AdapterRoles
from distill.compilation.blocks import BlockPrograms, Say
from distill.compilation.capture import CudaCapture
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import Both, Switch, release
from distill.config.schema import Recipe
from distill.losses.terms import terms_with_attention
from distill.objectives.distillation_loss import DistillationLossConfig
from distill.runtime.world import World


def make_compilation(recipe: Recipe, roles: AdapterRoles, world: World) -> Switch:
    """What switches the micro-steps of a run to their fast path. Nothing is compiled or captured yet.

    Where the setting cannot work, rank 0 says so in one line and the run goes on eagerly. Later failures are said by
    the rank that has them.
    """
    mode, config = recipe.train.compile, recipe.objective_config
    if mode == "none":
        return Switch()

    def say(line: str) -> None:
        print(line if world.is_main else f"rank {world.rank}: {line}", flush=True)

    def decide(line: str) -> None:
        if world.is_main:
            print(f"train.compile={mode}: {line}", flush=True)

    records = isinstance(config, DistillationLossConfig) and bool(terms_with_attention(config.terms))
    networks = step_networks(roles, records)
    graphs = _graphs(recipe, roles, world, networks, say, decide) if "graphs" in mode else None
    blocks = _blocks(recipe, networks, world, say, decide) if "blocks" in mode else None
    if records and (graphs or blocks):
        decide("the WriteNet runs eagerly, because a loss term records its attention")
    if graphs and blocks:
        return Both(graphs, blocks)
    return graphs or blocks or Switch()


def _graphs(
    recipe: Recipe, roles: AdapterRoles, world: World, networks: Sequence[nn.Module], say: Say, decide: Say
) -> GraphedCalls | None:
    if world.device.type != "cuda":
        decide(f"there are no CUDA graphs on a {world.device.type}; networks run eagerly")
        return None
    reasons = {"lora.dropout": recipe.lora.dropout, "model.activation_checkpointing": recomputes(recipe)}
    if found := [name for name, value in reasons.items() if value]:
        decide(f"the student is not captured with {' and '.join(found)}; the teacher is")
    calls = GraphedCalls(CudaCapture(), say, lambda: roles.active, captures_training=not found)
    calls.capture([*networks, roles.model.cond_stage_model.tower.transformer])
    return calls


def _blocks(recipe: Recipe, networks: Sequence[nn.Module], world: World, say: Say, decide: Say) -> BlockPrograms | None:
    if recipe.lora.dropout:
        decide(f"lora.dropout={recipe.lora.dropout} draws other numbers in compiled code; blocks run eagerly")
        return None
    _share_cores(world)
    programs = BlockPrograms(say)
    programs.compile(networks)
    return programs


def _share_cores(world: World) -> None:
    """Each rank compiles in processes of its own: by default one for each core, of some 0.4 GB each."""
    import torch._inductor.config as inductor  # takes a second, and only compilation needs it

    cores, ranks = os.cpu_count() or 1, int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    inductor.compile_threads = max(1, min(32, cores // ranks))


def release_networks(roles: AdapterRoles) -> None:
    """Student and teacher run as written again."""
    with roles.teacher() as teacher:
        for model in (roles.model, teacher):
            release(model)


def step_networks(roles: AdapterRoles, records: bool = False) -> list[nn.Module]:
    """UNet and WriteNet of the student and of the teacher. records: without the WriteNets, which hooks listen to."""
    with roles.teacher() as teacher:
        models = (roles.model, teacher)
    unets: list[nn.Module] = [model.model.diffusion_model for model in models]
    return unets if records else [*unets, *(model.control_model for model in models)]


def recomputes(recipe: Recipe) -> bool:
    """Whether the backward pass recomputes activations."""
    return recipe.model.activation_checkpointing != "none"
