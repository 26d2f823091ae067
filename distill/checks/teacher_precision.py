"""How far the teacher's noise moves where fp16 matrix products are accumulated in fp16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from anytext2.core.batch import Conditions
from distill.adapters.roles import AdapterRoles, predict_noise
from distill.checks.batch_checks import Finding
from distill.runtime.device_settings import fp16_accumulation

ACCUMULATION_LIMIT = 0.01
"""Largest distance at which `train.teacher_fp16_accumulation` is accepted: well below the error of one solver step."""
TIMESTEPS = (999, 500, 1)


def check_accumulation(roles: AdapterRoles, latent_Bzhw: Tensor, conditions: Conditions) -> Iterator[Finding]:
    """A finding where the teacher's noise moves by more than `ACCUMULATION_LIMIT`."""
    distance = accumulation_distance(roles, latent_Bzhw, conditions)
    if not distance <= ACCUMULATION_LIMIT:  # NaN included
        yield Finding(
            "train.teacher_fp16_accumulation",
            "true",
            f"moves the teacher's noise by {distance:.2%} on this device, more than {ACCUMULATION_LIMIT:.0%}; "
            "set it to false",
        )


@torch.inference_mode()
def accumulation_distance(roles: AdapterRoles, latent_Bzhw: Tensor, conditions: Conditions) -> float:
    """Largest relative distance, over `TIMESTEPS`, of the teacher's noise with fp16 and with fp32 accumulation.

    It is the root mean square of the difference over that of the noise. Where the device has no such switch, 0.
    latent_Bzhw: scaled latents [B, z, h, w], to which a fixed noise is added.
    """
    noise = torch.randn(latent_Bzhw.shape, generator=torch.Generator().manual_seed(0)).to(latent_Bzhw)
    distances = []
    for timestep in TIMESTEPS:
        share = timestep / 1000
        x = (1 - share) ** 0.5 * latent_Bzhw + share**0.5 * noise
        t = torch.full((len(x),), timestep, device=x.device)
        exact, fast = (_noise(roles, x, t, conditions, enabled) for enabled in (False, True))
        distances.append((fast - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    return float(torch.stack(distances).max())


def _noise(roles: AdapterRoles, x: Tensor, t: Tensor, conditions: Conditions, enabled: bool) -> Tensor:
    with roles.teacher() as teacher, fp16_accumulation(enabled):
        return predict_noise(teacher, x, t, conditions, teacher.control_maps(conditions))
