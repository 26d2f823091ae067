"""Prodigy: Adam that estimates its own step size (Mishchenko & Defazio 2023, "Prodigy: An Expeditiously Adaptive
Parameter-Free Learner", algorithm 4), for weights that are shared out among ranks.

With x_0 the first weights, g_k the gradient, gamma_k the schedule's learning rate and b3 = sqrt(beta2):

    m <- beta1 m + (1 - beta1) d g                   v <- beta2 v + (1 - beta2) d^2 g^2
    r <- b3 r + (d / d_0) gamma d <g, x_0 - x>       s <- b3 s + (d / d_0) d g
    x <- (1 - decay gamma d) x - gamma d m / (sqrt(v) + d eps)
    d <- max(d, r / |s|_1)

r and |s|_1 are sums over all weights, so over all ranks; everything else is a matter of one weight. As in the authors'
own implementation r and s carry d / d_0 instead of d (their ratio is the same), gamma is also multiplied by Adam's bias
correction sqrt(1 - beta2^k) / (1 - beta1^k), and s leaves gamma out ("safeguard warm-up": a warm-up's small rates would
make r / |s|_1 large). The factor 1 - b3 of the paper cancels too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

EPS = 1e-8
FIRST_DISTANCE = 1e-6
"""d_0: a lower bound of the distance to a solution, to start from."""


class Prodigy(torch.optim.Optimizer):
    """Steps over `params`, this rank's float32 shards, with one distance estimate d for all ranks.

    total: sums a float64 tensor over the ranks (it may change it). lr is gamma. State of each shard: `exp_avg` (m),
    `exp_avg_sq` (v), `s` and `p0` (x_0) in its shape, and as float64 scalars `step`, `d` and `d_numerator` (r), which
    are the same for all. Collective: every rank takes every step.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        total: Callable[[Tensor], Tensor],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._total = total

    def start(self, p: Tensor) -> None:
        """Forgets everything: the weights of now are x_0."""
        zero = torch.zeros((), dtype=torch.float64)
        self.state[p] = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq", "s")} | {
            "p0": p.detach().clone(),
            "step": zero,
            "d": zero + FIRST_DISTANCE,
            "d_numerator": zero.clone(),
        }

    def _shards(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for p in self._shards():
            if p not in self.state:
                self.start(p)
        groups, states = self.param_groups, [self.state[p] for p in self._shards()]
        lr, (beta1, beta2) = groups[0]["lr"], groups[0]["betas"]
        assert all(group["lr"] == lr and group["betas"] == (beta1, beta2) for group in groups)
        d, step = float(states[0]["d"]), float(states[0]["step"]) + 1
        rate = lr * d * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        sums = torch.zeros(2, dtype=torch.float64, device=self._shards()[0].device)
        for group in groups:
            for p in group["params"]:
                sums += self._move(p, d, rate, beta1, beta2, group["weight_decay"])
        found, lengths = self._total(sums).tolist()
        numerator = math.sqrt(beta2) * float(states[0]["d_numerator"]) + found
        if lr > 0 and lengths > 0:
            d = max(d, numerator / lengths)
        for state in states:
            state["step"].fill_(step)
            state["d"].fill_(d)
            state["d_numerator"].fill_(numerator)

    def _move(self, p: Tensor, d: float, rate: float, beta1: float, beta2: float, decay: float) -> Tensor:
        """One shard's update; float64 [2], its shares of r's increment and of |s|_1."""
        state, growth = self.state[p], d / FIRST_DISTANCE
        assert p.grad is not None
        grad = p.grad
        # The products are those of single weights, and their sum is exact enough to be the same for any sharing.
        found = (grad * (state["p0"] - p)).sum(dtype=torch.float64) * (growth * rate)
        state["s"].mul_(math.sqrt(beta2)).add_(grad, alpha=growth * d)
        state["exp_avg"].mul_(beta1).add_(grad, alpha=(1 - beta1) * d)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=(1 - beta2) * d * d)
        p.mul_(1 - decay * rate)
        p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(d * EPS), value=-rate)
        return torch.stack([found, state["s"].abs().sum(dtype=torch.float64)])
