"""The fast path of a run, chosen by train.compile."""

from __future__ import annotations

from torch import nn

from distill.adapters.roles import AdapterRoles
from distill.compilation.blocks import BlockPrograms
from distill.compilation.capture import CudaCapture
from distill.compilation.graphs import GraphedCalls
from distill.compilation.intercept import Switch
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

    def say(line: str) -> None:
        print(line if world.is_main else f"rank {world.rank}: {line}", flush=True)

    def decide(line: str) -> None:
        if world.is_main:
            print(f"train.compile={mode}: {line}", flush=True)

    if mode == "none":
        return Switch()
    if recipe.lora.dropout and mode == "blocks":
        decide(f"lora.dropout={recipe.lora.dropout} draws other numbers in compiled code; training runs eagerly")
        return Switch()
    if mode == "graphs" and world.device.type != "cuda":
        decide(f"there are no CUDA graphs on a {world.device.type}; training runs eagerly")
        return Switch()
    records = isinstance(config, DistillationLossConfig) and bool(terms_with_attention(config.terms))
    if records:
        decide("the WriteNet runs eagerly, because a loss term records its attention")
    networks = step_networks(roles, records)
    if mode == "blocks":
        programs = BlockPrograms(say)
        programs.compile(networks)
        return programs
    reasons = {"lora.dropout": recipe.lora.dropout, "model.activation_checkpointing": recomputes(recipe)}
    if found := [name for name, value in reasons.items() if value]:
        decide(f"the student runs eagerly with {' and '.join(found)}; the teacher is captured")
    calls = GraphedCalls(CudaCapture(), say, lambda: roles.active, captures_training=not found)
    calls.capture([*networks, roles.model.cond_stage_model.tower.transformer])
    return calls


def step_networks(roles: AdapterRoles, records: bool = False) -> list[nn.Module]:
    """UNet and WriteNet of the student and of the teacher. records: without the WriteNets, which hooks listen to."""
    with roles.teacher() as teacher:
        models = (roles.model, teacher)
    unets: list[nn.Module] = [model.model.diffusion_model for model in models]
    return unets if records else [*unets, *(model.control_model for model in models)]


def recomputes(recipe: Recipe) -> bool:
    """Whether the backward pass recomputes activations."""
    return recipe.model.activation_checkpointing != "none"
