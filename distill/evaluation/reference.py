"""The reference row of an evaluation, kept: the teacher's fifty guided steps cost more than all students' together.

What a latent depends on (weights, pictures, noise, sampling) is hashed into the file, and one that was made of anything
else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anytext2.core.batch import Sample
from anytext2.model.anytext2 import AnyText2
from distill.diffusion.sampling import SampledBatch, SamplingSpec
from distill.viz.grids import pixels

_SMALL = 4096  # values; norms and biases of every layer tell weights apart as well as all of them


class Reference:
    """Latents of one row for a sequence of pictures; read from `path` where it is there, else collected for `save`.

    origin: from `origin_of`. Raises ValueError for a file that is damaged or of another origin.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self._path, self._origin = path, origin
        self._kept: torch.Tensor | None = None
        self._new: list[torch.Tensor] = []
        self._facts: dict[str, str] = {}
        if path.is_file():
            self._kept, self._facts = _read(path)
            if self._facts["origin"] != origin:
                raise ValueError(
                    f"--reference {path}: made of other weights, pictures or options; name another file, or remove it"
                )

    @property
    def is_kept(self) -> bool:
        return self._kept is not None

    def painting(self, model: AnyText2, spec: SamplingSpec, first: int, count: int) -> SampledBatch:
        """The kept row for the pictures from `first` on, decoded anew."""
        assert self._kept is not None
        latent = self._kept[first : first + count].to(next(model.parameters()).device)
        image = pixels(model.decode(latent))
        return SampledBatch(spec, latent, image, int(self._facts["nfe"]), float(self._facts["seconds"]) * count)

    def add(self, painting: SampledBatch) -> None:
        """Takes the row of the next batch."""
        self._new.append(painting.latent.float().cpu())
        self._facts = {"nfe": str(painting.nfe), "seconds": str(painting.seconds / len(painting.latent))}

    def save(self) -> None:
        """Writes what was collected."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        save_file({"latent": torch.cat(self._new)}, partial, {**self._facts, "origin": self._origin})
        partial.replace(self._path)


def origin_of(model: AnyText2, samples: Sequence[Sample], spec: SamplingSpec, seed: int, negative_prompt: str) -> str:
    """A hash of everything that the row's latents are made of (the base weights by their small tensors).

    An injected fault (`model.fault_injection`) is not part of it: what it costs is measured against the sound teacher.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if tensor.numel() <= _SMALL and ".lora_" not in name:
            digest.update(tensor.float().cpu().numpy().tobytes())
    for sample in samples:
        told = [sample.index, sample.name, sample.image_caption, sample.text_caption, sample.texts, sample.editing]
        digest.update(json.dumps(told).encode())
        hints = (sample.glyph, sample.position, sample.glyph_line, sample.font_hint, sample.color)
        for tensor in (*hints, sample.masked_image):
            digest.update(tensor.numpy().tobytes())
    digest.update(json.dumps([spec.key, spec.guidance, seed, negative_prompt]).encode())
    return digest.hexdigest()


def _read(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            latent, facts = file.get_tensor("latent"), dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"--reference {path}: not a file that --reference has written ({error})") from error
    if not {"origin", "nfe", "seconds"} <= set(facts):
        raise ValueError(f"--reference {path}: not a file that --reference has written")
    return latent, facts
