"""CLIP score, FID and KID: the networks as published, and what is said of files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from distill.evaluation.fid_kid import frechet_distance, kernel_distance
from distill.evaluation.image_networks import (
    ClipScore,
    ImageNetworks,
    ImageNetworksConfig,
    ImageNetworkScores,
    InceptionFeatures,
)
from launch import evaluate

CPU = torch.device("cpu")
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def noise(seed: int, count: int, size: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    (folder / "test-tiny.json").write_text(json.dumps(TINY_CLIP), encoding="utf-8")
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("test-tiny", pretrained=None).state_dict(), folder / "clip.pt")
    return folder / "clip.pt"


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_clip_score_is_two_and_a_half_cosines(clip_weights: Path) -> None:
    score = ClipScore(clip_weights, "test-tiny", CPU)
    images, captions = noise(0, 3, 32), ["a red sign", "two words", "a dog"]
    network = open_clip.create_model("test-tiny", pretrained=None).eval()
    network.load_state_dict(torch.load(clip_weights, weights_only=True))
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (network.visual.image_mean, network.visual.image_std))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        seen, said = network.encode_image(pixels), network.encode_text(open_clip.tokenize(captions))
    expected = 2.5 * F.cosine_similarity(seen, said).clamp_min(0)
    assert score(images, captions) == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(set(score(images, captions))) > 1 or max(score(images, captions)) == 0


@pytest.mark.heavy
def test_inception_pools_without_padding_and_with_a_maximum_at_its_end(inception_weights: Path) -> None:
    pool = InceptionFeatures(inception_weights, CPU)
    blocks = dict(pool._network.named_children())
    x = torch.rand(1, 192, 5, 5) + 1
    with torch.no_grad():
        found = blocks["Mixed_5b"](x)[:, -32:]
        counts = F.conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), padding=1)
        mean = F.conv2d(x, torch.ones(192, 1, 3, 3), padding=1, groups=192) / counts
        assert torch.allclose(found, blocks["Mixed_5b"].block.branch_pool(mean), atol=1e-5)
        x = torch.rand(1, 2048, 3, 3) - 2
        windows = F.unfold(F.pad(x, (1, 1, 1, 1), value=-9.0), 3).reshape(1, 2048, 9, 9).amax(dim=2)
        largest = blocks["Mixed_7c"].block.branch_pool(windows.reshape(1, 2048, 3, 3))
        assert torch.allclose(blocks["Mixed_7c"](x)[:, -192:], largest, atol=1e-5)
    features = pool(noise(0, 2))
    assert features.shape == (2, 2048) and features.dtype == np.float32
    assert np.allclose(pool(noise(0, 2)[1:])[0], features[1], atol=1e-4)


@pytest.mark.heavy
def test_rows_are_compared_with_the_reference_folder(inception_weights: Path, tmp_path: Path) -> None:
    for n, image in enumerate(noise(1, 3)):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "a" / f"{n}.png")
    loaded = ImageNetworks(ImageNetworksConfig(fid_reference=tmp_path, fid_weights=inception_weights), CPU)
    networks = ImageNetworkScores(loaded)
    networks.update("row", noise(2, 2), ["x", "y"])
    networks.update("row", noise(3, 1), ["z"])
    networks.update("one", noise(3, 1), ["z"])
    drawn = np.concatenate([loaded.inception(noise(2, 2)), loaded.inception(noise(3, 1))])  # type: ignore[misc]
    reference = loaded.inception(noise(1, 3))  # type: ignore[misc]
    found = networks.compute("row", 50, 0)
    assert found.fid == pytest.approx(frechet_distance(drawn, reference), rel=1e-3)
    assert found.kid == pytest.approx(kernel_distance(drawn, reference), rel=1e-3, abs=1e-6)
    assert found.clip_score is None and networks.compute("one", 50, 0).fid is None
    assert loaded.reference_features("a") is not None and np.allclose(
        loaded.reference_features("a"), loaded.reference_features("none such"), atol=1e-4
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--fid-reference", "."], "--fid-reference: FID and KID also need --fid-weights FILE"),
        (["--fid-weights", "x.pth"], "--fid-weights: FID and KID also need --fid-reference DIR"),
        (["--clip-weights", "none.pt"], "--clip-weights none.pt: no such file"),
        (["--fid-weights", "{clip}", "--fid-reference", "{empty}"], "a folder with pictures"),
        (["--fid-weights", "{clip}", "--fid-reference", "{pictures}"], "the Inception of 1008 classes"),
        (["--clip-weights", "{clip}", "--clip-model", "none"], "--clip-model none: unknown to open_clip"),
        (["--clip-weights", "{text}"], "not a readable weights file"),
        (["--clip-weights", "{other}", "--clip-model", "test-tiny"], "is not the state of open_clip's test-tiny"),
        (["--protocol", "anytext-benchmark"], "--benchmark DIR belong together"),
        (["--protocol", "anytext-benchmark", "--benchmark", "{empty}"], "wukong_word/test1k.json and laion_word"),
        (["--count", "0"], "--count 0: must be at least 1"),
    ],
)
def test_what_is_missing_is_said_before_the_teacher_is_loaded(
    argv: list[str], message: str, clip_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name in ("empty", "pictures"):
        (tmp_path / name).mkdir()
    for n in range(2):
        Image.fromarray(noise(n, 1)[0]).save(tmp_path / "pictures" / f"{n}.png")
    (tmp_path / "text.pt").write_text("not weights", encoding="utf-8")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    names = {name: str(tmp_path / name) for name in ("empty", "pictures")}
    names |= {"clip": str(clip_weights), **{name: str(tmp_path / f"{name}.pt") for name in ("text", "other")}}

    def never(*_: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(evaluate, "load_sampling_model", never)
    assert evaluate.main([word.format(**names) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
