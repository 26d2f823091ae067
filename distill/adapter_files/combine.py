"""Several LoRAs as one, layer by layer, in float64: adapters may have different ranks and different layers.

    cat              the sum of the deltas, exactly; the ranks add up
    svd              the best approximation of that sum of a given rank
    ties             TIES (Yadav et al. 2023) on the deltas, then svd
    dare_ties        DARE (Yu et al. 2024), which drops and rescales at random, then TIES, then svd
    magnitude_prune  only the largest values of each delta, summed, then svd
    linear           the sum of the factors, as PEFT's `linear`: not the sum of the deltas, but of the same rank
    zip              cat with learned coefficients of the columns, see zip_columns.py

cat, svd and linear are PEFT's `add_weighted_adapter`; the next three are its `ties_svd`, `dare_ties_svd` and
`magnitude_prune_svd`, with PEFT's own functions of deltas. PEFT needs the whole model, refuses adapters of different
ranks in some of them, and computes in the adapters' dtype.

Shape legend: R rank, D inputs (of a convolution: input channels times cells of the kernel), E outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft.utils import merge_utils
from torch import Tensor

from anytext2.core.rng import seed_for
from distill.adapter_files.lora_weights import A, B, LoraWeights
from distill.adapter_files.zip_columns import column_coefficients

METHODS = ("cat", "svd", "ties", "dare_ties", "magnitude_prune", "linear", "zip")


@dataclass(frozen=True)
class ScaledLora:
    """A LoRA and the factor of its delta. Raises ValueError for a scale that is not finite, and for DoRA."""

    weights: LoraWeights
    scale: float = 1.0

    def __post_init__(self) -> None:
        path = self.weights.path
        if not math.isfinite(self.scale):
            raise ValueError(f"{path}: scale {self.scale}: a number is needed, as in {path}:0.7")
        if self.weights.kind == "dora":
            raise ValueError(f"{path}: a DoRA sets the lengths of its layers' weights, which cannot be added to others")

    def factors(self, module: str) -> tuple[Tensor, Tensor, float]:
        """A [R, D] and B [E, R] in float64, and what B A is multiplied by."""
        a_RD, b_ER = (self.weights.tensors[f"{module}.{part}"].double().flatten(1) for part in (A, B))
        return a_RD, b_ER, self.scale * self.weights.scale(module)

    def delta(self, module: str) -> Tensor:
        """The unscaled delta [E, D]: what the layer's weight gets at scale 1."""
        a_RD, b_ER, _ = self.factors(module)
        return self.weights.scale(module) * (b_ER @ a_RD)


@dataclass(frozen=True)
class Combination:
    """weights: the LoRA, of one rank and scale 1. kept: share of the squares of each layer that svd did not cut off."""

    weights: LoraWeights
    kept: dict[str, float]


@dataclass(frozen=True)
class Method:
    """A method of `METHODS`. rank: of what svd makes; None: the largest of the adapters'. density: share that stays.

    Raises ValueError for values that cannot be.
    """

    name: str = "cat"
    rank: int | None = None
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(f"method {self.name}: one of {', '.join(METHODS)}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank}: must be at least 1")
        if not 0.0 < self.density < 1.0:
            raise ValueError(f"density {self.density}: a share between 0 and 1 is needed")


def combine(parts: Sequence[ScaledLora], method: Method | None = None) -> Combination:
    """One LoRA of all parts. A layer that only some of them have is combined of those.

    Raises ValueError in one line for parts that the method cannot combine.
    """
    method = method or Method()
    if method.name == "zip" and len(parts) != 2:
        raise ValueError(f"method zip: combines two adapters, {len(parts)} were named")
    rank = method.rank or max(rank for part in parts for rank in part.weights.ranks.values())
    modules = list(dict.fromkeys(module for part in parts for module in part.weights.modules))
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    kept: dict[str, float] = {}
    for module in modules:
        own = [part for part in parts if module in part.weights.ranks]
        if method.name in _OF_FACTORS:
            factors[module] = _OF_FACTORS[method.name](own, module)
        else:
            a_RD, b_ER, kept[module] = _by_svd(own, module, method, rank)
            factors[module] = a_RD, b_ER
    return Combination(_as_lora(parts, modules, factors), kept)


# --- of the factors --------------------------------------------------------------------------------------------------

_Factors = tuple[Tensor, Tensor]


def _concatenated(parts: Sequence[ScaledLora], module: str) -> _Factors:
    """The sum of the deltas: [B1 B2] [s1 A1; s2 A2]."""
    factors = [part.factors(module) for part in parts]
    return torch.cat([scale * a for a, _, scale in factors]), torch.cat([b for _, b, _ in factors], dim=1)


def _added(parts: Sequence[ScaledLora], module: str) -> _Factors:
    """The sums of the factors, each with the root of its scale. The sign goes to one of them."""
    factors = [part.factors(module) for part in parts]
    ranks = {part.weights.path: len(a) for part, (a, _, _) in zip(parts, factors, strict=True)}
    if len(set(ranks.values())) > 1:
        said = ", ".join(f"{path}: {rank}" for path, rank in ranks.items())
        raise ValueError(f"method linear adds factors of one rank, {module} has several ({said}); use cat or svd")
    roots = [(math.copysign(math.sqrt(abs(s)), s), math.sqrt(abs(s))) for *_, s in factors]
    pairs = list(zip(factors, roots, strict=True))
    a_RD = torch.stack([root * a for (a, _, _), (root, _) in pairs]).sum(0)
    return a_RD, torch.stack([root * b for (_, b, _), (_, root) in pairs]).sum(0)


def _zipped(parts: Sequence[ScaledLora], module: str) -> _Factors:
    """The concatenation with the coefficients of the columns, which are those of A."""
    if len(parts) == 1:
        return _concatenated(parts, module)
    scaled = [part.factors(module) for part in parts]
    first, second = (scale * (b_ER @ a_RD) for a_RD, b_ER, scale in scaled)
    coefficients = column_coefficients(first, second)
    a = [scale * a_RD * m_D for (a_RD, _, scale), m_D in zip(scaled, coefficients, strict=True)]
    return torch.cat(a), torch.cat([b_ER for _, b_ER, _ in scaled], dim=1)


_OF_FACTORS: dict[str, Callable[[Sequence[ScaledLora], str], _Factors]] = {
    "cat": _concatenated,
    "linear": _added,
    "zip": _zipped,
}


# --- of the deltas ---------------------------------------------------------------------------------------------------


def _by_svd(parts: Sequence[ScaledLora], module: str, method: Method, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of the combined delta's best approximation, and the share of its squares that they keep."""
    if method.name == "svd":
        a_RD, b_ER = _concatenated(parts, module)
        # The singular values of B A are those of a small matrix between two orthogonal ones.
        q_ER, upper_RR = torch.linalg.qr(b_ER)
        q_DR, lower_RR = torch.linalg.qr(a_RD.T)
        u, s, v = torch.linalg.svd(upper_RR @ lower_RR.T)
        u, v = q_ER @ u, v @ q_DR.T
    else:
        u, s, v = torch.linalg.svd(combined_delta(parts, module, method), full_matrices=False)
    root = s[:rank].sqrt()
    total = float(s.square().sum())
    share = float(s[:rank].square().sum()) / total if total else 1.0
    return root[:, None] * v[: len(root)], u[:, : len(root)] * root, share


def combined_delta(parts: Sequence[ScaledLora], module: str, method: Method) -> Tensor:
    """The combined delta [E, D] of a method other than `linear` and `zip`, before svd cuts it to a rank."""
    deltas = [part.delta(module) for part in parts]
    scales = torch.tensor([part.scale for part in parts], dtype=torch.float64)
    if method.name in ("cat", "svd"):
        return merge_utils.task_arithmetic(deltas, scales)
    if method.name == "ties":
        return merge_utils.ties(deltas, scales, method.density)
    if method.name == "magnitude_prune":
        return merge_utils.magnitude_prune(deltas, scales, method.density)
    with torch.random.fork_rng(devices=[]):  # what is dropped depends on the seed and the layer alone
        torch.manual_seed(seed_for(method.seed, 0, 0, f"dare/{module}"))
        return merge_utils.dare_ties(deltas, scales, method.density)


# --- the result ------------------------------------------------------------------------------------------------------


def _as_lora(parts: Sequence[ScaledLora], modules: Sequence[str], factors: dict[str, _Factors]) -> LoraWeights:
    """The factors as a LoRA of one rank and scale 1: rows of zeros fill up, so that every reader understands it."""
    rank = max(len(a_RD) for a_RD, _ in factors.values())
    tensors: dict[str, Tensor] = {}
    for module in modules:
        (a_RD, b_ER), own = factors[module], next(p.weights for p in parts if module in p.weights.ranks)
        missing = rank - len(a_RD)
        a, b = torch.nn.functional.pad(a_RD, (0, 0, 0, missing)), torch.nn.functional.pad(b_ER, (0, missing))
        shape = own.tensors[f"{module}.{A}"].shape[1:]
        tensors[f"{module}.{A}"] = a.reshape(rank, *shape).float().contiguous()
        tensors[f"{module}.{B}"] = b.reshape(*b.shape, *[1] * (len(shape) - 1)).float().contiguous()
    ranks = dict.fromkeys(modules, rank)
    return LoraWeights(parts[0].weights.path, "peft", "lora", tensors, ranks, dict.fromkeys(modules, float(rank)))
