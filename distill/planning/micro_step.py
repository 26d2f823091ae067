"""Runs one micro-step of a recipe on torch's `meta` device: real code, shapes without values.

The networks, the objective and autograd are the training's own, so that what they save, free and compute is what a GPU
saves, frees and computes. Two things differ on purpose: attention is flash attention, as on a GPU, and weights have two
bytes, as they have under DeepSpeed's fp16 and bf16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from anytext2.data.geometry import Size
from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from anytext2.model.unet import UNet
from anytext2.model.vae import VAE
from anytext2.model.writenet import WriteNet
from distill.adapters.module_table import NETWORKS as NETWORK_PATHS
from distill.checkpoint.formats import PEFT_PREFIX
from distill.config.schema import Recipe
from distill.data.latents import LatentSource
from distill.inference.model import make_schedule
from distill.planning.accounting import OTHER, Accounting
from distill.planning.zeros import batch_of_zeros
from distill.training.build import make_objective, make_roles, negative_contexts
from distill.training.inputs import StepInputs
from distill.training.trainer import TrainingStep

META = torch.device("meta")
FLASH_WIDTH = 256
"""Greatest width of a head that flash attention takes; wider ones go to memory-efficient attention."""

INPUTS, TEACHER, STUDENT, BACKWARD = "inputs", "teacher and target", "student", "backward pass"
NETWORKS = {"UNet": (UNet, "forward"), "WriteNet": (WriteNet, "forward"), "VAE": (VAE, "encode_moments")}
CONDITIONS = "conditions"
NEED_VALUES = ("recognize", "ocr_ctc")
"""Objectives and terms whose operations torch has not for the meta device."""


class UnplannableError(ValueError):
    """The step cannot run on tensors without values."""


@dataclass(frozen=True)
class StepCost:
    """What one micro-step of `samples` pictures costs a GPU.

    weights: bytes by network, LoRA apart. trained: parameters. gradients: bytes of what autograd leaves. growth: the
    most bytes that the step adds at one time; at_peak: these by the part that made them. flops, calls: by part.
    """

    samples: int
    weights: dict[str, int]
    trained: int
    gradients: int
    growth: int
    at_peak: dict[str, int]
    flops: dict[str, int]
    operations: int
    calls: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes at the highest point of a step that adds to the gradients of the one before."""
        return sum(self.weights.values()) + self.gradients + self.growth


class MicroStep:
    """A recipe's networks, objective and trained parameters, all on the meta device. Reads and allocates no weights.

    size: of the pictures. dtype: of the weights and of what the networks compute.
    """

    def __init__(self, recipe: Recipe, size: Size, dtype: torch.dtype = torch.float16) -> None:
        """Raises UnplannableError for an objective or a term that needs values."""
        _refuse_values(recipe)
        self.recipe, self.size = recipe, size
        self.config = load_model_config(recipe.model.config)
        model = build_model(self.config, "meta", dtype, recipe.model.activation_checkpointing)
        objective = make_objective(recipe, make_schedule(self.config))
        self.roles, self._named = make_roles(model, objective, recipe)
        self.roles.wrapped.to(META, dtype)
        self._step = TrainingStep(self.roles.wrapped, objective, self.roles).train()
        latents = LatentSource(self.roles.model, keep_in_memory=False) if objective.needs_latents else None
        self._inputs = StepInputs(recipe.seed, META, latents, negative_contexts(recipe, self.roles))

    def recompute(self, setting: str) -> None:
        """Chooses a setting of model.activation_checkpointing."""
        for network in (self.roles.model.model.diffusion_model, self.roles.model.control_model):
            network.activation_checkpointing = setting

    def encoding_flops(self) -> int:
        """FLOPs to encode the two pictures of a sample for the feature cache."""
        accounting = Accounting(META)
        with as_on_a_gpu(accounting, Counter()), accounting, torch.no_grad():
            self.roles.model.posterior(torch.empty(2, 3, *self.size, device=META))
        return accounting.flops.total()

    def run(self, samples: int) -> StepCost:
        """The cost of a micro-step of so many samples, the second one of a run."""
        loaded = batch_of_zeros(self.recipe, self.config, self.size, samples)
        accounting, calls = Accounting(META), Counter[str]()
        for _, p in self._named:
            p.grad = None
        with as_on_a_gpu(accounting, calls):
            self._inputs(loaded, 0)  # what is made once a run
            calls.clear()
            with accounting:
                with accounting.running(INPUTS):
                    item = self._inputs(loaded, 0)
                with accounting.running(STUDENT):
                    loss = self._step(item).loss
                with accounting.running(BACKWARD):
                    loss.backward()
        gradients = [p.grad for _, p in self._named if p.grad is not None]
        return StepCost(
            samples=samples,
            weights=weight_bytes(self.roles.wrapped),
            trained=sum(p.numel() for _, p in self._named),
            gradients=sum(g.numel() * g.element_size() for g in gradients),
            growth=accounting.peak,
            at_peak=dict(+accounting.at_peak),
            flops=dict(accounting.flops),
            operations=accounting.operations.total(),
            calls=dict(calls),
        )


def _refuse_values(recipe: Recipe) -> None:
    needs = [f"objective.name={name}" for name in (recipe.objective["name"],) if name in NEED_VALUES]
    needs += [f"objective.terms.{name}" for name in recipe.student.terms if name in NEED_VALUES]
    if needs:
        raise UnplannableError(
            f"{needs[0]}: has operations that do not run without values, so that there is no plan for it"
        )


@contextmanager
def as_on_a_gpu(accounting: Accounting, calls: Counter[str]) -> Iterator[None]:
    """Inside, attention is a GPU's, and the parts of the model say to the accounting when they run.

    calls: takes how often each was called.
    """
    is_enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def is_autocast_enabled(device_type: str = "cuda") -> bool:
        return device_type != META.type and is_enabled(device_type)  # torch raises an error for the meta device

    def autocast_of(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == META.type else autocast(device_type, *args, **kwargs)

    with ExitStack() as patches:
        replace = patches.enter_context
        replace(mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled))
        replace(mock.patch.object(torch, "autocast", autocast_of))
        replace(mock.patch.object(functional, "scaled_dot_product_attention", gpu_attention))
        for name, (owner, method) in NETWORKS.items():
            replace(mock.patch.object(owner, method, _told(getattr(owner, method), name, accounting, calls)))
        encode = _told(AnyText2.encode_conditions, CONDITIONS, accounting, calls)
        replace(mock.patch.object(AnyText2, "encode_conditions", encode))
        yield


def _told(method: Callable[..., Any], name: str, accounting: Accounting, calls: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        part = part_of(name)
        calls[part] += 1
        with accounting.running(part):
            return method(*args, **kwargs)

    return call


def part_of(name: str) -> str:
    """The part that a call of this network belongs to now: networks with gradients are the student's."""
    if name not in ("UNet", "WriteNet"):
        return name
    return f"{TEACHER}: {name}" if torch.is_inference_mode_enabled() else f"{STUDENT}: {name}"


def gpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """`scaled_dot_product_attention` by the kernel that a GPU takes, whose memory grows with the length, not its
    square."""
    if attn_mask is None and query.shape[-1] <= FLASH_WIDTH and query.element_size() == 2:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]  # type: ignore[no-any-return]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    keeps = torch.is_grad_enabled()
    return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]


def weight_bytes(wrapped: nn.Module) -> dict[str, int]:
    """Bytes of the parameters and buffers by network, and of everything that adapters add."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    for name, tensor in (*wrapped.named_parameters(), *wrapped.named_buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            bare = name.replace(PEFT_PREFIX, "")
            network = next((network for network, start in NETWORK_PATHS.items() if bare.startswith(start)), OTHER)
            found["LoRA" if ".lora_" in name else network] += tensor.numel() * tensor.element_size()
    return dict(found)
