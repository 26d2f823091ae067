"""The latents of a training batch, from the VAE, from memory, or from the feature cache."""

from __future__ import annotations

import torch

from anytext2.core.batch import Batch
from anytext2.core.rng import Draws
from anytext2.core.transfer import to_device
from anytext2.model.anytext2 import AnyText2


class LatentSource:
    """Scaled latents of a batch's images.

    keep_in_memory: False: a sample of the posterior, drawn anew in every epoch, as the reference trains. True: the
    posterior's mode, kept in fp16 by sample index (8 KiB for a 128 px picture with 16 channels). The latent of a blank
    picture is encoded once for each size. Both need a VAE that is not trained.
    """

    def __init__(self, model: AnyText2, keep_in_memory: bool) -> None:
        self._model = model
        self._kept: dict[int, torch.Tensor] | None = {} if keep_in_memory else None
        self._blank: dict[tuple[torch.Size, torch.dtype, torch.device], torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch, draws: Draws) -> torch.Tensor:
        """[B, z, h, w] for the batch's images [B, 3, H, W], or from the posteriors that came with it."""
        if batch.posterior is not None:
            mean, deviation = batch.posterior.float().unbind(dim=1)
            return mean + deviation * draws.normal("posterior", mean.shape[1:], mean.device)
        if self._kept is None:
            latent_shape = self._model.latent_shape(batch.image.shape[-2], batch.image.shape[-1])
            return self._model.encode(batch.image, draws.normal("posterior", latent_shape, batch.image.device))
        missing = [row for row, index in enumerate(batch.index) if index not in self._kept]
        if missing:
            encoded = self._model.encode(torch.stack([batch.image[row] for row in missing])).to("cpu", torch.float16)
            self._kept.update({batch.index[row]: latent for row, latent in zip(missing, encoded, strict=True)})
        return to_device(torch.stack([self._kept[index] for index in batch.index]), batch.image.device)

    @torch.no_grad()
    def masked(self, batch: Batch) -> torch.Tensor:
        """[B, z, h, w]: `AnyText2.masked_latents` of the batch."""
        if all(batch.editing):
            return self._model.masked_latents(batch)
        size, device = batch.position.shape[-2:], batch.position.device
        key = (size, self._model.dtype, device)
        if key not in self._blank:
            self._blank[key] = self._model.blank_latent(*size)
        return self._model.masked_latents(batch, self._blank[key])
