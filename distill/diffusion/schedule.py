"""The noise schedule: alpha/sigma tables, the x0 <-> eps algebra, timestep grids and boundary scalings.

Conventions (Ho et al. 2020, eq. 4; Song et al. 2021, eq. 12): ``x_t = alpha_t x_0 + sigma_t eps`` with
``alpha_t = sqrt(abar_t)`` and ``sigma_t = sqrt(1 - abar_t)``. Tables are float64; every result has the precision of
the tensor it is applied to, but never less than float32.

Shape legend: B batch, C channels, h/w latent cells, T timesteps of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from anytext2.core.transfer import to_device


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete variance-preserving schedule: ``alphas_cumprod``, float64 [T], falls strictly within (0, 1)."""

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if table.ndim != 1 or table.dtype != torch.float64:
            raise ValueError(
                f"alphas_cumprod: expected a float64 vector, got {table.dtype} of shape {tuple(table.shape)}"
            )

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.0120, timesteps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: the square root of beta rises linearly from ``start`` to ``end``."""
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0))

    @property
    def timesteps(self) -> int:
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its tables on ``device``; copied there once."""
        device = torch.device(device)
        if device == self.alphas_cumprod.device:
            return self
        if device not in self._copies:
            with torch.inference_mode(False):  # or the copy could not enter a graph later
                self._copies[device] = NoiseSchedule(to_device(self.alphas_cumprod, device))
        return self._copies[device]

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) for integer ``t`` [B], shaped [B, 1, ...] to broadcast over ``like`` [B, ...]."""
        table_2T = self.to(like.device)._roots(at_least_float32(like.dtype))
        both = table_2T.index_select(1, to_device(t, like.device)).view(2, -1, *[1] * (like.ndim - 1))
        alpha, sigma = both.unbind()
        return alpha, sigma

    @cached_property
    def _copies(self) -> dict[torch.device, NoiseSchedule]:
        """This schedule on other devices."""
        return {}

    def _roots(self, dtype: torch.dtype) -> Tensor:
        """The tables of alpha and sigma, [2, T]."""
        if dtype not in self._tables:
            with torch.inference_mode(False):
                roots = torch.stack([self.alphas_cumprod.sqrt(), (1.0 - self.alphas_cumprod).sqrt()])
                self._tables[dtype] = roots.to(dtype)
        return self._tables[dtype]

    @cached_property
    def _tables(self) -> dict[torch.dtype, Tensor]:
        return {}

    def velocity_weight(self, t: Tensor, cap: float) -> Tensor:
        """min(1 / abar_t, cap), float64 [B]: turns a squared error of eps into one of v = alpha eps - sigma x_0.

        Both errors belong to the same x_t, so v - v' = (eps - eps') / alpha_t (Salimans and Ho 2022, appendix D).
        """
        return (1.0 / self.to(t.device).alphas_cumprod[t]).clamp_max(cap)

    def snr_weight(self, t: Tensor, gamma: float, of_noise: bool = False) -> Tensor:
        """min-SNR weights in (0, 1], float64 [B], SNR = abar / (1 - abar) (Hang et al. 2023, equation 12).

        min(SNR, gamma) / gamma for a loss of x_0 (theirs, scaled so that the greatest is 1); min(SNR, gamma) / SNR for
        one of the noise.
        """
        abar = self.to(t.device).alphas_cumprod[t]
        snr = abar / (1.0 - abar)
        return snr.clamp_max(gamma) / (snr if of_noise else gamma)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def eps_to_x0(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sigma_t eps) / alpha_t."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        return (x_t - sigma * eps) / alpha

    def x0_to_eps(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """eps = (x_t - alpha_t x_0) / sigma_t."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        return (x_t - alpha * x0) / sigma


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """``values`` [B] as [B, 1, ...] with the rank of ``like``, in its precision but at least float32."""
    dtype = at_least_float32(like.dtype)
    return to_device(values, like.device).to(dtype).reshape(-1, *[1] * (like.ndim - 1))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ddim_timesteps(n_steps: int, timesteps: int = 1000) -> Tensor:
    """The solver's grid of consistency distillation, int64 [n] ascending: 50 of 1000 gives 19, 39, ..., 999.

    Luo et al. 2023 (LCM), section 4.3. ``round(i T / n) - 1`` for i = 1..n, so the last step is always T - 1.
    """
    if not 1 <= n_steps <= timesteps:
        raise ValueError(f"solver steps: {n_steps} is impossible, choose 1 to {timesteps}")
    upper_edges = torch.arange(1, n_steps + 1, dtype=torch.float64) * timesteps / n_steps
    return upper_edges.round().to(torch.int64) - 1


def boundary_scalings(t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out), float64 [B], of the consistency function ``f = c_skip x_t + c_out x_0``.

    Song et al. 2023 (consistency models), appendix C, over the scaled time ``tau = timestep_scaling * t`` as LCM uses
    it: f is the identity at t = 0, whatever the network says there.
    """
    tau = t.to(torch.float64) * timestep_scaling
    variance = tau.square() + sigma_data**2
    return sigma_data**2 / variance, tau / variance.sqrt()


GRIDS = ("uniform", "karras", "coarse")
_COARSE = {
    4: (50, 299, 599, 999),
    6: (50, 199, 399, 599, 799, 999),
    8: (50, 399, 499, 599, 699, 799, 899, 999),
    16: (50, 113, 177, 240, 303, 366, 430, 493, 556, 619, 683, 746, 809, 872, 936, 999),
}
"""Grids with one entry for each step of the student, for 1000 timesteps; denser at the high noise of the layout."""

_RHO = 7.0


def solver_grid(kind: str, n_steps: int, schedule: NoiseSchedule) -> Tensor:
    """The times that a student is trained and sampled at, int64 [n] ascending up to T - 1.

    ``uniform``: `ddim_timesteps`. ``karras``: even in sigma^(1/7) with sigma = sqrt(1 - abar) / sqrt(abar) (Karras et
    al. 2022, eq. 5), each rounded to the nearest timestep above the one before. ``coarse``: one of the fixed grids of
    4, 6, 8 or 16 entries. Raises ValueError for an unknown grid.
    """
    if kind == "uniform":
        return ddim_timesteps(n_steps, schedule.timesteps)
    if kind == "karras":
        return _karras(n_steps, schedule)
    if kind != "coarse":
        raise ValueError(f"grid = '{kind}': choose one of {', '.join(GRIDS)}")
    if n_steps not in _COARSE or schedule.timesteps != 1000:
        known = ", ".join(map(str, _COARSE))
        raise ValueError(f"solver_steps = {n_steps}: coarse grids have {known} steps of 1000 timesteps")
    return torch.tensor(_COARSE[n_steps], dtype=torch.int64)


def _karras(n_steps: int, schedule: NoiseSchedule) -> Tensor:
    if not 2 <= n_steps <= schedule.timesteps // 4:
        raise ValueError(f"solver_steps = {n_steps}: a karras grid has 2 to {schedule.timesteps // 4} steps")
    abar = schedule.alphas_cumprod.cpu()
    roots = ((1.0 - abar) / abar).sqrt().pow(1.0 / _RHO)
    even = torch.linspace(float(roots[0]), float(roots[-1]), n_steps + 1, dtype=torch.float64)[1:]
    nearest = (roots[None, :] - even[:, None]).abs().argmin(dim=1)
    # If steps of sigma are finer than the table's, neighbours would be the same entry.
    apart = torch.arange(n_steps)
    return (nearest - apart).cummax(dim=0).values + apart
