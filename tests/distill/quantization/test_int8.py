"""8-bit layers: their values, the first token, which layers are chosen, the file."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anytext2.model.anytext2 import AnyText2, build_model, load_model_config
from distill.quantization.dynamic import quantize_activations
from distill.quantization.files import load_quantized, read_note, write_quantized
from distill.quantization.int8 import (
    Int8Layer,
    bytes_of,
    first_tokens,
    network_tensors,
    own_structure,
    quantizable_layers,
    quantize,
    quantize_rows,
)
from distill.quantization.sensitivity import LayerSensitivity, layers_to_keep
from tests.helpers.models.mini_model import mini_batch, mini_model
from tests.helpers.models.parity import normal


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return mini_model().float().requires_grad_(False).eval()


def test_values_are_the_nearest_of_each_channel() -> None:
    weight = normal(5, 4, 3, 3, dtype=torch.float32)
    weight[2] = 0
    values, scales = quantize_rows(weight)
    assert values.dtype == torch.int8 and values.shape == weight.shape
    assert (values.flatten(1).abs().amax(1)[[0, 1, 3, 4]] == 127).all() and not values[2].any()
    error = (values.float() * scales.view(-1, 1, 1, 1) - weight).flatten(1).abs().amax(1)
    assert (error <= scales / 2 * 1.0001).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (7, 6)),
        (nn.Linear(6, 5, bias=False), (2, 3, 6)),
        (nn.Conv2d(6, 5, 3, padding=1, stride=2), (2, 6, 9, 7)),
        (nn.Conv2d(6, 5, 1), (2, 6, 4, 4)),
    ],
)
def test_a_layer_computes_with_its_dequantised_weight(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> None:
    x = normal(*shape, dtype=torch.float32)
    eight, exact = Int8Layer(layer), copy.deepcopy(layer)
    values, scales = quantize_rows(layer.weight)
    exact.weight.data = values.float() * scales.view(-1, *[1] * (layer.weight.dim() - 1))
    assert torch.equal(eight(x), exact(x))
    with torch.no_grad():
        assert 0 < float((eight(x) - layer(x)).norm() / layer(x).norm()) < 0.02
    half = copy.deepcopy(eight).half()
    assert half.weight.dtype == torch.int8 and half.weight_scale.dtype == torch.float16 == half(x.half()).dtype


def test_the_first_token_of_every_chunk_is_exact(model: AnyText2) -> None:
    first = first_tokens(model)
    contexts = model.cond_stage_model.encode_image_captions(["a red wall", "blue"])
    assert torch.allclose(contexts[:, 0], first.expand(2, -1), atol=1e-6)
    layer = nn.Linear(16, 8, bias=False)
    x = torch.cat([contexts[0], contexts[1]])
    y = Int8Layer(layer, layer(first))(x)
    assert torch.allclose(y[::77], layer(x)[::77], atol=1e-5) and not torch.allclose(y[1], layer(x)[1], atol=1e-5)


def test_layers_of_the_official_model_and_their_size() -> None:
    official = build_model(load_model_config("sd15"), "meta")
    layers = quantizable_layers(official)
    assert len(layers) == 488 - 4  # all of the contract but the time embeddings
    weights = sum(layer.weight.numel() for layer in layers.values())
    channels = sum(layer.weight.shape[0] for layer in layers.values())
    half = 2 * sum(t.numel() for t in network_tensors(official).values())
    assert (half - weights + 2 * channels) / half < 0.51


@pytest.mark.heavy
def test_quantise_write_and_load(model: AnyText2, tmp_path: Path) -> None:
    kept = ["model.diffusion_model.out.2"]
    batch = mini_batch().normalized()
    conditions = model.encode_conditions(batch, torch.zeros(3, 3, 4, 4))
    x, t = normal(3, 3, 4, 4, dtype=torch.float32), torch.tensor([900, 500, 20])

    def eps(of: AnyText2) -> Tensor:
        return of.predict_noise(x, t, conditions.image_context, of.control_maps(conditions))

    exact, plain = eps(model), {name: t.clone() for name, t in network_tensors(model).items()}
    student = own_structure(model)
    assert isinstance(student, AnyText2)
    layers = quantize(student, kept)
    assert set(layers) == set(quantizable_layers(model)) - set(kept)
    assert 0 < float((eps(student) - exact).norm() / exact.norm()) < 0.1
    assert bytes_of(network_tensors(student)) < 0.4 * bytes_of(plain)
    write_quantized(tmp_path / "q.safetensors", student, {"student": "x", "kept": kept})
    assert read_note(tmp_path / "q.safetensors") == {"student": "x", "kept": kept}
    written = load_file(tmp_path / "q.safetensors")
    assert written["control_model.zero_convs.0.0.weight"].dtype == torch.int8
    assert written["model.diffusion_model.out.2.weight"].dtype == torch.float16
    again = own_structure(model)
    assert isinstance(again, AnyText2)
    load_quantized(again, tmp_path / "q.safetensors")
    assert float((eps(again) - eps(student)).norm() / exact.norm()) < 2e-3  # scales and the rest are rounded to fp16
    assert all(torch.equal(tensor, plain[name]) for name, tensor in network_tensors(model).items())
    assert torch.equal(eps(model), exact)


@pytest.mark.torchao
@torch.no_grad()
def test_activations_in_8_bits_as_well_keep_what_is_predicted(model: AnyText2) -> None:
    batch = mini_batch().normalized()
    conditions = model.encode_conditions(batch, torch.zeros(3, 3, 4, 4))
    x, t = normal(3, 3, 4, 4, dtype=torch.float32), torch.tensor([900, 500, 20])

    def eps(of: AnyText2) -> Tensor:
        return of.predict_noise(x, t, conditions.image_context, of.control_maps(conditions))

    student = own_structure(model)
    assert isinstance(student, AnyText2)
    quantize(student, ())
    assert quantize_activations(student) > 10
    assert 0 < float((eps(student) - eps(model)).norm() / eps(model).norm()) < 0.15


def test_files_that_do_not_fit(model: AnyText2, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file; launch/quantize.py makes one"):
        read_note(tmp_path / "q.safetensors")
    (tmp_path / "q.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_note(tmp_path / "q.safetensors")
    torch.save({}, tmp_path / "torch.safetensors")
    with pytest.raises(ValueError, match="a torch file"):
        read_note(tmp_path / "torch.safetensors")
    student = own_structure(model)
    assert isinstance(student, AnyText2)
    quantize(student)
    write_quantized(tmp_path / "mini.safetensors", student, {})
    with pytest.raises(ValueError, match="a student of another model: .* tensors do not fit, first "):
        load_quantized(build_model(load_model_config("tiny"), "meta"), tmp_path / "mini.safetensors")


def test_torchao_is_optional(model: AnyText2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"torchao is missing: pip install 'anytext2-distill\[quant\]'"):
        quantize_activations(model)


def test_the_worst_layers_for_their_size_are_kept() -> None:
    found = [LayerSensitivity(name, 0.0, picture, weights) for name, picture, weights in LAYERS]
    assert layers_to_keep(found, 0.08) == ["small", "middle"]
    assert layers_to_keep(found, 0.0) == []


LAYERS = (("large", 5.0, 900), ("small", 2.0, 10), ("middle", 1.0, 40), ("good", 0.01, 50))
