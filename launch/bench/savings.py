"""What makes a micro-step cheap, each with a context manager that switches it off. Losses stay the same.

A saving is switched off by replacing one function or method by the plain way of doing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor

from anytext2.core.batch import Batch, Conditions, Contexts, Control
from anytext2.core.rng import Draws
from anytext2.model.anytext2 import AnyText2
from anytext2.model.text_encoder import TextEncoder
from distill.adapters.fused_linear import FusedLinear
from distill.adapters.roles import AdapterRoles, predict_noise
from distill.data.latents import LatentSource
from distill.data.loader import LoadedBatch
from distill.diffusion import guidance
from distill.losses.step_input import StepInput
from distill.losses.writenet_attention import AttentionRecorder
from distill.objectives import self_consistency, teacher
from distill.training.inputs import StepInputs

_Both = tuple[Any, Any]
"""Of the conditional and of the unconditional estimate."""


@contextmanager
def _replaced(*patches: tuple[object, str, object]) -> Iterator[None]:
    """Replaces attributes inside the block: (owner, name, value)."""
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def guidance_in_two_calls() -> AbstractContextManager[None]:
    """The teacher's two estimates are separate calls of the UNet, and their control maps of the WriteNet."""

    def both(conditions: Conditions, negative: Contexts) -> _Both:
        return conditions, conditions.with_contexts(negative)

    def write(_: AttentionRecorder, model: AnyText2, given: Conditions | _Both, role: str, rows: int = 0) -> Any:
        return _for_each(model.control_maps, given)

    def predict(
        model: AnyText2, x: Tensor, t: Tensor, given: _Both, control: _Both, scale: Tensor, context: _Both
    ) -> Tensor:
        c, u = (predict_noise(model, x, t, *branch) for branch in zip(given, control, context, strict=True))
        return u + scale * (c - u)

    project = AnyText2.project_context
    return _replaced(
        (teacher, "with_negative", both),
        (AttentionRecorder, "write", write),
        (AnyText2, "project_context", lambda model, given: _for_each(partial(project, model), given)),
        (teacher, "predict_guided", predict),
    )


def _for_each(call: Callable[[Any], Any], given: Any) -> Any:
    return tuple(call(branch) for branch in given) if isinstance(given, tuple) else call(given)


def writenet_in_every_call() -> AbstractContextManager[None]:
    """The WriteNet runs before each call of the UNet."""

    def predict(model: AnyText2, x: Tensor, t: Tensor, given: Conditions, _: Control, *context: Any) -> Tensor:
        return predict_noise(model, x, t, given, model.control_maps(given), *context)

    users = (guidance, teacher, self_consistency)
    return _replaced(*((user, "predict_noise", predict) for user in users), (AttentionRecorder, "write", lambda *_: ()))


def context_in_every_call() -> AbstractContextManager[None]:
    """Each call of the teacher's UNet projects the image captions' context."""
    return _replaced((AnyText2, "project_context", lambda *_: None))


def teacher_by_switching() -> AbstractContextManager[None]:
    """The teacher is the student's network with its adapters disabled."""

    @contextmanager
    def switched(roles: AdapterRoles) -> Iterator[AnyText2]:
        assert isinstance(roles.wrapped, PeftModel)
        with roles.wrapped.disable_adapter(), torch.inference_mode():
            yield roles.model

    return _replaced((AdapterRoles, "teacher", switched))


def lora_layers_of_peft() -> AbstractContextManager[None]:
    """LoRA layers compute both branches apart."""
    return _replaced((FusedLinear, "forward", PeftLinear.forward))


def captions_in_two_calls() -> AbstractContextManager[None]:
    """Image captions and text captions are separate calls of the text tower."""

    def encode(
        encoder: TextEncoder, image_captions: Sequence[str], text_captions: Sequence[str], *lines: Any
    ) -> Contexts:
        image = encoder.encode_image_captions(image_captions)
        return Contexts(image, encoder.encode_text_captions(text_captions, *lines))

    return _replaced((TextEncoder, "encode_both", encode))


def negative_prompt_in_every_step() -> AbstractContextManager[None]:
    """The negative prompt is encoded in each micro-step."""
    read = StepInputs.__call__

    def without_negative(inputs: StepInputs, loaded: LoadedBatch, updates: int) -> StepInput:
        return replace(read(inputs, loaded, updates), negative=None)

    return _replaced((StepInputs, "__call__", without_negative))


def pictures_encoded() -> AbstractContextManager[None]:
    """The VAE encodes the pictures in each micro-step."""
    read, read_masked = LatentSource.__call__, LatentSource.masked

    def encode(source: LatentSource, batch: Batch, draws: Draws) -> Tensor:
        return read(source, replace(batch, posterior=None), draws)

    def encode_masked(source: LatentSource, batch: Batch) -> Tensor:
        return read_masked(source, replace(batch, masked_latent=None))

    return _replaced((LatentSource, "__call__", encode), (LatentSource, "masked", encode_masked))


SAVINGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "batched guidance": guidance_in_two_calls,
    "WriteNet once a role": writenet_in_every_call,
    "context projected once": context_in_every_call,
    "teacher without LoRA layers": teacher_by_switching,
    "fused LoRA layers": lora_layers_of_peft,
    "both captions in one call": captions_in_two_calls,
    "negative prompt once a run": negative_prompt_in_every_step,
    "cached latents": pictures_encoded,
}
"""Name of a saving -> the context manager that switches it off."""
