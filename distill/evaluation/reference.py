"""A cache of the reference row's latents: the teacher's 50 guided steps cost more than all rows of students together.

The file holds a fingerprint of everything that the latents depend on: weights, pictures, noise and sampling. A file
with another fingerprint is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from anytext2.core.batch import Sample
from anytext2.core.files import write_safetensors
from anytext2.model.anytext2 import AnyText2
from distill.diffusion.sampling import SampledBatch, SamplingSpec, to_pictures

_HASHED_VALUES = 4096
"""Tensors up to this size are hashed: norms and biases of every layer tell weights apart as well as all tensors do."""


class ReferenceCache:
    """Latents of one row for a sequence of pictures: read from `path` where it exists, else collected for `save`.

    fingerprint: from `reference_fingerprint`. Raises ValueError for a file that is damaged or has another one.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._loaded: torch.Tensor | None = None
        self._collected: list[torch.Tensor] = []
        self._metadata: dict[str, str] = {}
        if path.is_file():
            self._loaded, self._metadata = _read(path)
            if self._metadata["origin"] != fingerprint:
                raise ValueError(
                    f"--reference {path}: made of other weights, pictures or options; name another file, or remove it"
                )

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    @torch.inference_mode()
    def sampled_batch(self, model: AnyText2, spec: SamplingSpec, first: int, count: int) -> SampledBatch:
        """The cached row of `count` pictures from `first` on; images are decoded anew."""
        assert self._loaded is not None
        latent = self._loaded[first : first + count].to(next(model.parameters()).device)
        return SampledBatch(
            spec,
            latent,
            to_pictures(model, latent),
            int(self._metadata["nfe"]),
            float(self._metadata["seconds"]) * count,
        )

    def add(self, sampled: SampledBatch) -> None:
        """Collects the row of the next batch."""
        self._collected.append(sampled.latent.float().cpu())
        self._metadata = {"nfe": str(sampled.nfe), "seconds": str(sampled.seconds / len(sampled.latent))}

    def save(self) -> None:
        """Writes what was collected. The file appears complete or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        metadata = {**self._metadata, "origin": self._fingerprint}
        write_safetensors(partial, {"latent": torch.cat(self._collected)}, metadata)
        partial.replace(self._path)


def reference_fingerprint(
    model: AnyText2, samples: Sequence[Sample], spec: SamplingSpec, seed: int, negative_prompt: str
) -> str:
    """SHA-256 of everything that the row's latents depend on; of the base weights, the small tensors.

    An injected fault (`model.fault_injection`) is left out: a faulty model is compared with the sound teacher.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if tensor.numel() <= _HASHED_VALUES and ".lora_" not in name:
            digest.update(tensor.float().cpu().numpy().tobytes())
    for sample in samples:
        words = [sample.index, sample.name, sample.image_caption, sample.text_caption, sample.texts, sample.editing]
        digest.update(json.dumps(words).encode())
        hints = (sample.glyph, sample.position, sample.glyph_line, sample.font_hint, sample.color)
        for tensor in (*hints, sample.masked_image):
            digest.update(tensor.numpy().tobytes())
    digest.update(json.dumps([spec.key, spec.guidance, seed, negative_prompt]).encode())
    return digest.hexdigest()


def _read(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            latent, metadata = file.get_tensor("latent"), dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"--reference {path}: not a file that --reference has written ({error})") from error
    if not {"origin", "nfe", "seconds"} <= set(metadata):
        raise ValueError(f"--reference {path}: not a file that --reference has written")
    return latent, metadata
