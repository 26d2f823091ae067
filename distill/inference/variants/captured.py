"""A model whose networks run as CUDA graphs: a GPU then does not wait for Python between two steps of a sampler.

Each network is captured at its first call with a picture size, batch size and use of guidance, which takes about as
long as six such calls. So it is for processes that draw many pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from torch import nn

from anytext2.model.anytext2 import AnyText2
from distill.adapters.merging import StudentRoles
from distill.adapters.roles import AdapterRoles, SamplingRoles
from distill.compilation.capture import Capture, CudaCapture
from distill.compilation.graphs import GraphedCalls
from distill.inference.loading import SamplingModel


def print_line(line: str) -> None:
    print(line, flush=True)


def with_graphs(
    model: SamplingModel, say: Callable[[str], None] = print_line, capture: Capture | None = None
) -> SamplingModel:
    """The same model with UNet, WriteNet and the VAE's decoder captured, of the student and of a loaded teacher.

    say: gets one line for what runs eagerly. capture: default: CUDA's. Raises ValueError for adapters whose scales can
    change: a graph keeps them.
    """
    if model.added is not None and isinstance(model.roles, AdapterRoles):
        raise ValueError("--graphs: keeps the scales of --add as they are; add --merge, or leave out --graphs")
    if capture is None and model.device.type != "cuda":
        say(f"--graphs: there are no CUDA graphs on a {model.device.type}; networks run eagerly")
        return model
    roles = model.roles
    calls = GraphedCalls(
        capture or CudaCapture(),
        say,
        lambda: roles.active if isinstance(roles, AdapterRoles) else None,
        captures_training=False,
        setting="--graphs",
    )
    calls.capture([network for loaded in _models(roles) for network in sampled_networks(loaded)])
    calls.keep_on()
    return replace(model, graphs=calls)


def sampled_networks(model: AnyText2) -> list[nn.Module]:
    """What is captured of a model: all that is called between its conditions and its pictures."""
    return [model.model.diffusion_model, model.control_model, model.first_stage_model.decoder]


def _models(roles: SamplingRoles) -> list[AnyText2]:
    """The student, and the teacher where it is loaded. They share what has no adapter."""
    models = [roles.model]
    if not isinstance(roles, StudentRoles):  # its teacher is another file, which is read only when it is asked for
        with suppress(ValueError), roles.teacher() as teacher:
            models.append(teacher)
    return models
