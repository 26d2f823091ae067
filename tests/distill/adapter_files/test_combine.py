"""Combined LoRAs: equal to the sum of the deltas in float64 where that is the method, and to PEFT's own results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import anytext2  # noqa: F401  declares the torchvision operators that peft's imports need
from distill.adapter_files.combine import METHODS, Combination, Method, ScaledLora, combine, combined_delta
from distill.adapter_files.delta import lora_delta
from distill.adapter_files.lora_weights import A, B, LoraWeights, peft_settings
from distill.adapter_files.zip_columns import column_coefficients, zip_loss
from tests.helpers.models.parity import normal

SHAPES = {"linear": (9, 7), "conv1": (6, 5, 1, 1), "conv3": (4, 5, 3, 3)}


def lora(name: str, ranks: Mapping[str, int], alpha: float = 4.0, kind: str = "lora") -> LoraWeights:
    tensors = {}
    for i, (module, rank) in enumerate(ranks.items()):
        out, *inner = SHAPES[module]
        seed = sum(map(ord, name)) + i
        tensors[f"{module}.{A}"] = normal(rank, *inner, seed=seed, dtype=torch.float32)
        tensors[f"{module}.{B}"] = normal(out, rank, *[1] * (len(inner) - 1), seed=seed + 50, dtype=torch.float32)
    return LoraWeights(Path(name), "peft", kind, tensors, dict(ranks), dict.fromkeys(ranks, alpha))


def delta(found: Combination, module: str) -> Tensor:
    return lora_delta(found.weights, module, torch.Size(SHAPES[module]))


def sum_of(parts: list[ScaledLora], module: str) -> Tensor:
    shape = torch.Size(SHAPES[module])
    return torch.stack(
        [p.scale * lora_delta(p.weights, module, shape) for p in parts if module in p.weights.ranks]
    ).sum(0)


UNEQUAL = [
    ScaledLora(lora("student", {"linear": 3, "conv1": 2, "conv3": 3}, kind="rslora"), 1.0),
    ScaledLora(lora("style", {"linear": 1, "conv3": 2}), 0.7),
    ScaledLora(lora("other", {"conv1": 4}), -0.5),
]


@pytest.mark.parametrize("name", ["cat", "svd"])
def test_ranks_and_layers_may_differ_and_the_sum_is_exact(name: str) -> None:
    found = combine(UNEQUAL, Method(name, rank=6))
    assert set(found.weights.modules) == set(SHAPES)
    for module in SHAPES:
        wanted = sum_of(UNEQUAL, module)
        assert torch.allclose(delta(found, module), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max())), module
        assert found.weights.ranks[module] == {"cat": 6, "svd": 5}[name] and found.weights.scale(module) == 1.0
        assert found.weights.tensors[f"{module}.{A}"].shape[1:] == SHAPES[module][1:]
    assert all(share == pytest.approx(1.0) for share in found.kept.values())


def test_svd_is_the_best_approximation_of_a_rank() -> None:
    found = combine(UNEQUAL, Method("svd", rank=2))
    for module in SHAPES:
        wanted = sum_of(UNEQUAL, module).flatten(1)
        values = torch.linalg.svdvals(wanted)
        missed = float((delta(found, module).flatten(1) - wanted).norm())
        assert missed == pytest.approx(float(values[2:].norm()), rel=1e-4)
        assert found.kept[module] == pytest.approx(1 - missed**2 / float(wanted.norm()) ** 2, abs=1e-6)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 9)
        self.conv1, self.conv3 = nn.Conv2d(5, 6, 1), nn.Conv2d(5, 4, 3)


PEFTS = {"cat": "cat", "linear": "linear", "svd": "svd", "ties": "ties_svd", "magnitude_prune": "magnitude_prune_svd"}


@pytest.mark.parametrize("name", [*PEFTS, "dare_ties"])
def test_as_peft_combines_them(name: str) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    parts = [
        ScaledLora(lora("a", dict.fromkeys(SHAPES, 3)), 0.8),
        ScaledLora(lora("b", dict.fromkeys(SHAPES, 3)), -0.4),
    ]
    model = get_peft_model(Layers(), LoraConfig(**peft_settings(parts[0].weights)), adapter_name="a")
    model.add_adapter("b", LoraConfig(**peft_settings(parts[1].weights)))
    for part in parts:
        named = {f"base_model.model.{key}": tensor for key, tensor in part.weights.tensors.items()}
        set_peft_model_state_dict(model, named, adapter_name=str(part.weights.path))
    method = Method(name, rank=4, density=0.5, seed=3)
    found = combine(parts, method)
    # At density 0.999... nothing is dropped at random: dare_ties is then ties with all values.
    if name == "dare_ties":
        name, method = "ties", Method("dare_ties", rank=4, density=1 - 1e-12)
        found = combine(parts, method)
    density = 1.0 if method.name == "dare_ties" else method.density
    model.add_weighted_adapter(["a", "b"], [0.8, -0.4], "sum", PEFTS[name], svd_rank=4, density=density)
    for module in SHAPES:
        wanted = model.base_model.model.get_submodule(module).get_delta_weight("sum")
        assert torch.allclose(delta(found, module).float(), wanted, rtol=1e-4, atol=1e-4), module


def test_dare_drops_a_share_and_keeps_the_expected_value() -> None:
    part = ScaledLora(lora("a", {"linear": 3}))
    whole = part.delta("linear")
    drawn = torch.stack(
        [combined_delta([part], "linear", Method("dare_ties", density=0.4, seed=seed)) for seed in range(60)]
    )
    dropped = drawn == 0
    assert float(dropped.double().mean()) == pytest.approx(0.6, abs=0.03)
    assert torch.allclose(drawn[~dropped] * 0.4, whole.expand_as(drawn)[~dropped])
    again = combined_delta([part], "linear", Method("dare_ties", density=0.4, seed=7))
    assert torch.equal(again, drawn[7])


def test_linear_is_not_the_sum_and_needs_one_rank() -> None:
    with pytest.raises(ValueError, match=r"linear has several \(student: 3, style: 1\); use cat or svd"):
        combine(UNEQUAL, Method("linear"))
    twice = [ScaledLora(lora("a", {"linear": 3}), 0.5)] * 2
    found = combine(twice, Method("linear"))  # with itself the factors' sum is twice the deltas' sum
    assert torch.allclose(delta(found, "linear"), 2 * sum_of(twice, "linear"), rtol=1e-5)


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(ValueError, match="style: scale nan: a number is needed, as in style:0.7"):
        ScaledLora(lora("style", {"linear": 1}), math.nan)
    with pytest.raises(ValueError, match="style: a DoRA sets the lengths"):
        ScaledLora(lora("style", {"linear": 1}, kind="dora"))
    for values, said in (
        ({"name": "sum"}, "one of cat, svd"),
        ({"rank": 0}, "rank 0"),
        ({"density": 1.5}, "density 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            Method(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method zip: combines two adapters, 3 were named"):
        combine(UNEQUAL, Method("zip"))
    assert set(METHODS) == {*PEFTS, "dare_ties", "zip"}


# --- learned coefficients --------------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum().abs() / (a.norm() * b.norm()))


def test_coefficients_are_the_minimum_of_the_loss() -> None:
    torch.manual_seed(0)
    a, b = normal(9, 12, seed=1), normal(9, 12, seed=2)
    b[:, :4] = 0.1 * a[:, :4] + 0.01 * b[:, :4]  # columns that nearly agree, one much longer than the other
    for weight in (0.0, 1.0, 1.9):
        m, n = column_coefficients(a, b, weight)
        least = zip_loss(a, b, m, n, weight)
        assert (m >= 0).all() and (n >= 0).all()
        for scale in (0.3, 0.03, 1e-3):
            for _ in range(50):
                near = [(x + scale * torch.randn_like(x)).clamp_min(0) for x in (m, n)]
                assert zip_loss(a, b, *near, weight) >= least - 1e-12
    assert (column_coefficients(a, b, 0.0)[0] == 1).all()


def test_zip_keeps_what_does_not_overlap_and_lowers_the_cosine() -> None:
    a, b = normal(9, 8, seed=1), torch.zeros(9, 8, dtype=torch.float64)
    b[:, :2] = a[:, :2] + 0.2 * normal(9, 2, seed=3)  # an interference in two columns
    b[:, 4] = torch.linalg.qr(torch.stack([a[:, 4], normal(9, seed=5)], dim=1))[0][:, 1]  # orthogonal
    m, n = column_coefficients(a, b)
    assert torch.allclose(m[2:], torch.ones(6, dtype=m.dtype)) and float(n[4]) == pytest.approx(1.0)
    assert (m[:2] < 0.8).all() and (n[:2] < 0.8).all()
    assert cosine(m * a, n * b) < cosine(a, b) - 0.02
    both = torch.linalg.norm(m * a - a) ** 2 + torch.linalg.norm(n * b - b) ** 2
    dropped = torch.linalg.norm(b) ** 2
    assert both < 0.5 * dropped  # more of both is kept than by leaving one out


def test_zip_of_two_adapters() -> None:
    parts = UNEQUAL[:2]
    found = combine(parts, Method("zip"))
    assert torch.allclose(delta(found, "conv1"), sum_of(parts[:1], "conv1"), atol=1e-5)
    a, b = (p.scale * lora_delta(p.weights, "linear", torch.Size(SHAPES["linear"])) for p in parts)
    m, n = column_coefficients(a, b)
    assert torch.allclose(delta(found, "linear"), m * a + n * b, atol=1e-5)
    assert found.weights.ranks["linear"] == max(3 + 1, 3 + 2)
