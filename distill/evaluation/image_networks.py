"""CLIP score, FID and KID, by networks whose weights the user provides. Nothing is downloaded.

Shape legend: B pictures, H/W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from anytext2.data.image_file import ImageError, read_image
from anytext2.model.weights import read_state_dict
from distill.evaluation import CLIP_MODEL, INCEPTION_FILE
from distill.evaluation.fid_kid import frechet_distance, kernel_distance
from distill.evaluation.scores import NetworkScores, mean_interval

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
INCEPTION_CLASSES = 1008
UNMEASURED_NETWORKS_NOTE = (
    "CLIP score, FID and KID were not measured: --clip-weights FILE, and --fid-reference DIR with --fid-weights FILE, "
    "measure them (docs/DISTILLATION.md)"
)


@dataclass(frozen=True)
class ImageNetworksConfig:
    """The networks that are asked for; None: not asked for.

    clip_weights: of open_clip's `clip_model`. fid_reference: a folder of real pictures. fid_weights: of the Inception
    network that FID is defined on. Raises ValueError where one of the latter two is given alone, or a file is missing.
    """

    clip_weights: Path | None = None
    clip_model: str = CLIP_MODEL
    fid_reference: Path | None = None
    fid_weights: Path | None = None

    def __post_init__(self) -> None:
        if (self.fid_reference is None) != (self.fid_weights is None):
            given, missing = ("--fid-reference", "--fid-weights FILE")
            if self.fid_reference is None:
                given, missing = "--fid-weights", "--fid-reference DIR"
            raise ValueError(f"{given}: FID and KID also need {missing}")
        for flag, file in (("--clip-weights", self.clip_weights), ("--fid-weights", self.fid_weights)):
            if file is not None and not file.is_file():
                raise ValueError(f"{flag} {file}: no such file")
        if self.fid_reference is not None and not _pictures(self.fid_reference):
            raise ValueError(f"--fid-reference {self.fid_reference}: a folder with pictures ({', '.join(PICTURES)})")

    @property
    def any(self) -> bool:
        return self.clip_weights is not None or self.fid_weights is not None


class ClipScore:
    """2.5 max(cos, 0) of a picture's and its caption's embeddings (Hessel et al. 2021; no prefix, as in AnyText).

    Raises ValueError in one line for an unknown model or weights that do not fit it.
    """

    def __init__(self, weights: Path, model: str, device: torch.device) -> None:
        import open_clip

        if model not in open_clip.list_models():
            raise ValueError(f"--clip-model {model}: unknown to open_clip, as {CLIP_MODEL} is not")
        state = read_state_dict(weights)
        network = open_clip.create_model(model, pretrained=None)
        _load(network, state, f"--clip-weights {weights}", f"state of open_clip's {model}")
        self._network = network.to(device).eval().requires_grad_(False)
        visual = network.visual
        self._prepare = open_clip.image_transform(
            visual.image_size, is_train=False, mean=visual.image_mean, std=visual.image_std
        )
        self._tokens, self._device = open_clip.get_tokenizer(model), device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, captions: Sequence[str]) -> list[float]:
        """The score of each picture, uint8 RGB [B, H, W, 3], with its caption."""
        pixels = torch.stack([self._prepare(Image.fromarray(image)) for image in images]).to(self._device)
        image_BD = self._network.encode_image(pixels, normalize=True)
        text_BD = self._network.encode_text(self._tokens(list(captions)).to(self._device), normalize=True)
        scores: list[float] = (2.5 * (image_BD * text_BD).sum(dim=1).clamp_min(0.0)).tolist()
        return scores


class InceptionFeatures:
    """The 2048 pool features that FID is defined on (Heusel et al. 2017).

    Computed by torchvision's Inception v3 with the weights that pytorch-fid publishes. Raises ValueError in one line
    for other weights.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        from torchvision.models import inception_v3

        state = read_state_dict(weights)
        classes = len(state.get("fc.bias", ()))
        if classes != INCEPTION_CLASSES:
            raise ValueError(
                f"--fid-weights {weights}: FID is defined on the Inception of {INCEPTION_CLASSES} classes "
                f"({INCEPTION_FILE} of pytorch-fid), this has {classes or 'no'} classes"
            )
        network = inception_v3(
            weights=None, num_classes=classes, aux_logits=False, transform_input=False, init_weights=False
        )
        _load(network, state, f"--fid-weights {weights}", INCEPTION_FILE)
        self._network = _with_original_pooling(network).to(device).eval().requires_grad_(False)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 [B, 2048] of uint8 RGB pictures [B, H, W, 3]."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = F.interpolate(pixels, (299, 299), mode="bilinear", align_corners=False)
        features: np.ndarray = self._network(pixels).cpu().numpy()
        return features


class _Pooled(nn.Module):
    """A block of torchvision's Inception with another pooling in its last branch: maximum, or mean without padding."""

    def __init__(self, block: Any, use_max: bool) -> None:
        super().__init__()
        self.block, self._use_max = block, use_max

    def forward(self, x: Tensor) -> Tensor:
        if self._use_max:
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*self.block._forward(x)[:-1], self.block.branch_pool(pooled)], dim=1)


def _with_original_pooling(network: Any) -> nn.Module:
    """The network as the weights were trained: means leave the padding out, and the last block pools by maximum."""
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"):
        setattr(network, name, _Pooled(getattr(network, name), use_max=False))
    network.Mixed_7c = _Pooled(network.Mixed_7c, use_max=True)
    network.fc = nn.Identity()
    network.eval()  # the dropout before the classes goes
    return network


class ImageNetworks:
    """The networks that were asked for, loaded. Raises ValueError in one line for files that do not fit."""

    def __init__(self, options: ImageNetworksConfig, device: torch.device) -> None:
        self.options = options
        self.clip: ClipScore | None = None
        self.inception: InceptionFeatures | None = None
        if options.clip_weights is not None:
            self.clip = ClipScore(options.clip_weights, options.clip_model, device)
        if options.fid_weights is not None:
            self.inception = InceptionFeatures(options.fid_weights, device)
        self._references: dict[Path, np.ndarray] = {}

    def reference_features(self, subfolder: str = "") -> np.ndarray | None:
        """Features [N, 2048] of the FID reference: of its `subfolder` where that exists, else of all its pictures."""
        folder = self.options.fid_reference
        if self.inception is None or folder is None:
            return None
        folder = folder / subfolder if subfolder and (folder / subfolder).is_dir() else folder
        if folder not in self._references:
            self._references[folder] = folder_features(self.inception, folder)
        return self._references[folder]


class ImageNetworkScores:
    """Collects CLIP scores and Inception features of the pictures of every row, and computes the scores.

    subfolder: of the FID reference, see `ImageNetworks.reference_features`.
    """

    def __init__(self, networks: ImageNetworks, subfolder: str = "") -> None:
        self._networks, self._reference = networks, networks.reference_features(subfolder)
        self._clip: dict[str, list[float]] = {}
        self._features: dict[str, list[np.ndarray]] = {}

    def update(self, key: str, images: np.ndarray, captions: Sequence[str]) -> None:
        """Takes pictures of a row, uint8 RGB [B, H, W, 3], and the captions that they were sampled with."""
        if self._networks.clip is not None:
            texts = [caption.strip(" .") for caption in captions]
            self._clip.setdefault(key, []).extend(self._networks.clip(images, texts))
        if self._networks.inception is not None:
            self._features.setdefault(key, []).append(self._networks.inception(images))

    def compute(self, key: str, resamples: int, seed: int) -> NetworkScores:
        """The scores over all pictures of a row; FID and KID are None for a single picture."""
        clip = self._clip.get(key)
        interval = None if clip is None else mean_interval(clip, None, resamples, seed)
        mean = None if clip is None else float(np.mean(clip))
        features = np.concatenate(self._features[key]) if key in self._features else np.empty((0, 0))
        if self._reference is None or len(features) < 2:
            return NetworkScores(mean, interval)
        fid, kid = (distance(features, self._reference) for distance in (frechet_distance, kernel_distance))
        return NetworkScores(mean, interval, fid, kid)


def folder_features(inception: InceptionFeatures, folder: Path) -> np.ndarray:
    """Features [N, 2048] of the pictures in a folder and below it. Raises ValueError for one that cannot be read."""
    files = _pictures(folder)
    if len(files) < 2:
        raise ValueError(f"--fid-reference {folder}: {len(files)} pictures; at least 2, thousands for a published FID")
    found = []
    for file in files:
        try:
            found.append(inception(read_image(file)[None]))
        except ImageError as error:
            raise ValueError(f"--fid-reference {file}: {error.reason}") from error
    return np.concatenate(found)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def _load(network: nn.Module, state: dict[str, Tensor], where: str, wanted: str) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(f"{where}: is not the {wanted} ({first[0].strip()[:160]})") from error
