"""Steps of the probability-flow ODE, as pure functions of tensors."""

from __future__ import annotations

from torch import Tensor


def ddim_step(x0: Tensor, eps: Tensor, s_alpha: Tensor, s_sigma: Tensor) -> Tensor:
    """The deterministic DDIM step to the time with (alpha_s, sigma_s): x_s = alpha_s x_0 + sigma_s eps.

    Song et al. 2021 (DDIM), eq. 12 with eta = 0. ``x0`` and ``eps`` are the model's estimates at the present time;
    ``s_alpha`` and ``s_sigma`` broadcast over them.
    """
    return s_alpha * x0 + s_sigma * eps


def heun_step(
    x: Tensor, eps: Tensor, eps_at_end: Tensor, now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]
) -> Tensor:
    """The second-order step from the time with (alpha, sigma) = ``now`` to ``then`` (Karras et al. 2022, algorithm 1).

    With xbar = x / alpha and sigmabar = sigma / alpha the flow is d xbar / d sigmabar = eps. The slope is the mean of
    ``eps`` and ``eps_at_end``, the estimate at the end of the `ddim_step`. If both are equal, it is that step.
    """
    (alpha, sigma), (s_alpha, s_sigma) = now, then
    return s_alpha * (x / alpha + (s_sigma / s_alpha - sigma / alpha) * (eps + eps_at_end) / 2)
