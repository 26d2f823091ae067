from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anytext2.model.recognizer import (
    Recognizer,
    RecognizerConfig,
    ctc_greedy_decode,
    ctc_targets,
    load_charset,
)
from tests.helpers.models.mini_model import fill
from tests.helpers.models.parity import OFFICIAL_KEYS, assert_same, gradients, normal, shapes_of
from tests.helpers.models.plain_blocks import State, children, normalise, project, silu, softmax_attention, sub

CONFIG = RecognizerConfig(scale=0.25, neck_dims=16, neck_hidden=24, depth=2, heads=4, n_classes=30)


# --- the network a second time, as functions of its state dict --------------------------------------------------------


def conv_norm(state: State, x: Tensor, names: tuple[str, str], stride: int | tuple[int, int] = 1) -> Tensor:
    weight, norm = state[f"{names[0]}.weight"], sub(state, names[1])
    x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])
    deviation = (norm["running_var"] + 1e-5).sqrt()

    def channels(v: Tensor) -> Tensor:
        return v[:, None, None]

    centred = x - channels(norm["running_mean"])
    return centred / channels(deviation) * channels(norm["weight"]) + channels(norm["bias"])


def hard_gate(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def plain_recognizer(state: State, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    strides = [(1, 1), (1, 1), (1, 1), (2, 1), (1, 1), (2, 1), *[(1, 1)] * 5, (2, 1), (1, 2)]
    backbone = ("_conv", "_batch_norm")
    x = conv_norm(sub(state, "backbone.conv1"), x, backbone, 2)
    x = x * hard_gate(x)
    for number in children(sub(state, "backbone.block_list")):
        block = sub(state, f"backbone.block_list.{number}")
        x = conv_norm(sub(block, "_depthwise_conv"), x, backbone, strides[int(number)])
        x = x * hard_gate(x)
        squeeze = sub(block, "_se")
        if squeeze:
            mean = x.mean((2, 3), keepdim=True)
            mean = F.conv2d(mean, squeeze["conv1.weight"], squeeze["conv1.bias"]).clamp(min=0)
            x = x * hard_gate(F.conv2d(mean, squeeze["conv2.weight"], squeeze["conv2.bias"]))
        x = conv_norm(sub(block, "_pointwise_conv"), x, backbone)
        x = x * hard_gate(x)
    x = x.unflatten(3, (-1, 2)).mean(4)[:, :, :2].mean(2, keepdim=True)

    neck = sub(state, "neck.encoder")

    def swish(name: str, y: Tensor) -> Tensor:
        return silu(conv_norm(sub(neck, name), y, ("conv", "norm")))

    def layer_norm(part: State, y: Tensor, eps: float) -> Tensor:
        return normalise(y, (-1,), eps) * part["weight"] + part["bias"]

    z = swish("conv2", swish("conv1", x))[:, :, 0].transpose(1, 2)
    for number in children(sub(neck, "svtr_block")):
        block = sub(neck, f"svtr_block.{number}")
        qkv = project(sub(block, "mixer.qkv"), layer_norm(sub(block, "norm1"), z, 1e-5)).chunk(3, -1)
        z = z + project(sub(block, "mixer.proj"), softmax_attention(*qkv, heads=heads))
        inner = project(sub(block, "mlp.fc1"), layer_norm(sub(block, "norm2"), z, 1e-5))
        z = z + project(sub(block, "mlp.fc2"), silu(inner))
    z = swish("conv3", layer_norm(sub(neck, "norm"), z, 1e-6).transpose(1, 2)[:, :, None])
    features = swish("conv1x1", swish("conv4", torch.cat([x, z], 1)))[:, :, 0].transpose(1, 2)
    return project(sub(state, "head.fc"), features), features


def random_recognizer() -> Recognizer:
    recognizer = Recognizer(CONFIG).eval()
    fill(recognizer)
    return recognizer


@pytest.mark.heavy
def test_parity_with_plain_functions() -> None:
    recognizer = random_recognizer()
    x = normal(2, 3, 48, 320).requires_grad_()
    ours, theirs = recognizer(x), plain_recognizer(recognizer.state_dict(), x, CONFIG.heads)
    assert ours.logits.shape == (2, 40, 30) and ours.features.shape == (2, 40, 16)
    assert_same(ours, theirs, tolerance=1e-9)
    # torch's hard-sigmoid has 1/6 in single precision in its backward pass
    assert_same(gradients(ours, [x]), gradients(theirs, [x]), tolerance=1e-6)
    assert not torch.allclose(ours.features[0], ours.features[1], rtol=1e-2), "it forgets its input"


def test_features_are_what_the_head_reads() -> None:
    recognizer = random_recognizer()
    x = normal(1, 3, 48, 320)
    torch.testing.assert_close(recognizer(x).logits, recognizer.head(recognizer.features(x)))


@pytest.mark.parametrize("prefix", ["text_predictor.", "embedding_manager.font_predictor."])
def test_official_names_and_shapes(prefix: str) -> None:
    shapes = {}
    for line in official_lines(prefix):
        key, _, shape = line.split("\t")
        shapes[key.removeprefix(prefix)] = () if shape == "scalar" else tuple(map(int, shape.split("x")))
    with torch.device("meta"):
        assert shapes_of(Recognizer(RecognizerConfig())) == shapes


def official_lines(prefix: str) -> list[str]:
    return [line for line in OFFICIAL_KEYS.read_text(encoding="utf-8").splitlines() if line.startswith(prefix)]


# --- characters ------------------------------------------------------------------------------------------------------


CHARSET = ("", "a", "b", "c", " ")


def logits_of(classes: list[int]) -> Tensor:
    return F.one_hot(torch.tensor([classes]), len(CHARSET)).float()


@pytest.mark.parametrize(
    ("classes", "text"),
    [([0, 1, 1, 0, 1, 2, 2], "aab"), ([0, 0, 0], ""), ([3, 4, 4, 3], "c c"), ([1, 0, 0, 1], "aa"), ([1, 1, 1], "a")],
)
def test_decode(classes: list[int], text: str) -> None:
    assert ctc_greedy_decode(logits_of(classes), CHARSET) == [text]


def test_targets_and_decode_are_inverse_and_unknown_is_last() -> None:
    targets, lengths = ctc_targets(["ab c", "", "aXa"], CHARSET)
    assert targets.tolist() == [[1, 2, 4, 3], [0, 0, 0, 0], [1, 4, 1, 0]]
    assert lengths.tolist() == [4, 0, 3]
    evenly_spaced = torch.zeros(2 * targets.shape[1], dtype=torch.int64)
    evenly_spaced[::2] = targets[0]
    assert ctc_greedy_decode(F.one_hot(evenly_spaced[None], len(CHARSET)), CHARSET) == ["ab c"]


def test_charset_file(tmp_path: Path) -> None:
    file = tmp_path / "characters.txt"
    file.write_text("a\n你\n#\n", encoding="utf-8")
    assert load_charset(str(file), 5) == ("", "a", "你", "#", " ")
    with pytest.raises(ValueError, match="has 3 characters, which makes 5 classes.*n_classes = 7"):
        load_charset(str(file), 7)
    with pytest.raises(ValueError, match="recognizer.charset = 'no_such.txt': no file"):
        load_charset("no_such.txt", 7)


def test_ppocr_charset() -> None:
    pytest.importorskip("rapidocr_onnxruntime")
    charset = load_charset("ppocr", 6625)
    assert len(charset) == len(set(charset)) == 6625
    assert charset[0] == "" and charset[-1] == " " and "你" in charset and "A" in charset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "recognizer.scale"),
        ({"neck_hidden": 121}, "recognizer.neck_hidden = 121"),
        ({"n_classes": 2}, "recognizer.n_classes = 2"),
    ],
)
def test_impossible_configs(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecognizerConfig(**change)  # type: ignore[arg-type]
