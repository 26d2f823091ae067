"""Steps of the probability-flow ODE, as pure functions of tensors."""

from __future__ import annotations

from torch import Tensor


def ddim_step(x0: Tensor, eps: Tensor, s_alpha: Tensor, s_sigma: Tensor) -> Tensor:
    """The deterministic DDIM step to the time with (alpha_s, sigma_s): x_s = alpha_s x_0 + sigma_s eps.

    Song et al. 2021 (DDIM), eq. 12 with eta = 0. ``x0`` and ``eps`` are the model's estimates at the present time;
    ``s_alpha`` and ``s_sigma`` broadcast over them.
    """
    return s_alpha * x0 + s_sigma * eps
