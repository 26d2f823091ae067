"""Collects the batches of an evaluation, row by row, and scores them when all are there.

Shape legend: B batch, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from statistics import median

import numpy as np
import torch

from anytext2.core.batch import Batch, TextLine
from distill.diffusion.sampling import SampledBatch, SamplingSpec
from distill.evaluation.background import background_similarity
from distill.evaluation.image_networks import Networks
from distill.evaluation.ocr import Embedder, OcrEngine, normalise, reading_corners
from distill.evaluation.scores import (
    HEIGHT,
    LANGUAGE,
    UNKNOWN,
    GroupScore,
    ImageSimilarity,
    LineScores,
    NetworkScores,
    RowScore,
    mean_interval,
    psnr,
    rmse,
    score_structure,
    score_text,
)
from distill.evaluation.sliced_wasserstein import SlicedDistance, sliced_wasserstein
from distill.evaluation.strokes import line_structure
from distill.viz.grids import GridRow, hint_picture, pixels, to_uint8

HEIGHTS = ((24.0, "under 24"), (32.0, "24-32"), (48.0, "32-48"), (float("inf"), "48 and more"))
"""Pixels of a line's height: the shorter side of its box, which in a vertical column is its width."""

DISTANCE_RESAMPLES = 300
"""Of the intervals of distances, at most."""


class ScoreAccumulator:
    """What was found about the originals, their reconstructions and every row, picture by picture.

    texts: everything that is written in the pictures to come; shown: pictures kept for people; resamples and seed: of
    the bootstrap intervals; reader, embedder, networks: None where their scores are left out.
    """

    def __init__(
        self,
        texts: Sequence[str],
        shown: int,
        resamples: int,
        seed: int,
        reader: OcrEngine | None,
        embedder: Embedder | None = None,
        networks: Networks | None = None,
    ) -> None:
        self._most_shown, self._resamples, self._seed = shown, resamples, seed
        self._reader, self._embedder, self._networks = reader, embedder, networks
        self._characters = sorted({character for text in texts for character in normalise(text)})
        self.truth: list[list[str]] = []
        self.rmse: dict[str, list[float]] = {}
        self.shown: list[GridRow] = []
        self.not_scored = 0
        self._groups: list[list[tuple[str, ...]]] = []
        self._structure: dict[str, list[list[float | None]]] = {}
        self._latents: dict[str, list[torch.Tensor]] = {}
        self._read: dict[str, list[list[str]]] = {}
        self._seen: dict[str, list[torch.Tensor]] = {}
        self._psnr: dict[str, list[float]] = {}
        self._background: dict[str, list[float]] = {}
        self._seconds: dict[str, list[float]] = {}
        self._nfe: dict[str, int] = {}
        self._reference: SampledBatch | None = None

    # --- collecting ---

    def start(self, batch: Batch, rebuilt: torch.Tensor) -> None:
        """A new batch: its texts, its originals and the VAE's reconstructions of them ([B, 3, H, W] in [0, 1])."""
        self._reference = None
        first = len(self.truth)
        originals = to_uint8(pixels(batch.image))
        written = batch.nonblank_lines
        self.truth += [[line.text for line in lines] for lines in written]
        self._groups += [[groups_of(line) for line in lines] for lines in written]
        self.not_scored += sum(map(len, batch.texts)) - sum(map(len, written))
        self._look("originals", batch, originals)
        self._look("reconstructions", batch, to_uint8(rebuilt))
        for b in range(min(batch.size, self._most_shown - len(self.shown))):
            hint = hint_picture(batch.position[b], batch.glyph[b])
            caption, texts = batch.image_caption[b], tuple(self.truth[first + b])
            shown = GridRow(batch.name[b], originals[b], hint, {}, caption, texts)
            self._keep_reading(shown, "originals", first + b)
            self.shown.append(shown)

    def add(self, batch: Batch, painting: SampledBatch) -> None:
        """One row of the batch; the first is the reference of the others."""
        key = painting.spec.key
        self._reference = self._reference or painting
        self.rmse.setdefault(key, []).extend(rmse(painting.latent, self._reference.latent).tolist())
        self._latents.setdefault(key, []).append(painting.latent.float().cpu())
        self._psnr.setdefault(key, []).extend(psnr(painting.image, self._reference.image).tolist())
        similar = background_similarity(painting.image, self._reference.image, batch)
        self._background.setdefault(key, []).extend(similar.tolist())
        self._seconds.setdefault(key, []).append(painting.seconds / batch.size)
        self._nfe[key] = painting.nfe
        images = to_uint8(painting.image)
        self._look(key, batch, images)
        if self._networks is not None:
            self._networks.look(key, images, batch.image_caption)
        first = len(self.rmse[key]) - batch.size
        for number, (shown, image) in enumerate(zip(self.shown[first:], images, strict=False), first):  # few of them
            shown.rows[key] = image
            self._keep_reading(shown, key, number)

    def _look(self, key: str, batch: Batch, images: np.ndarray) -> None:
        """Reads the lines of a batch's pictures [B, H, W, 3], and compares their strokes with the glyphs."""
        pages = batch.glyph.to(torch.uint8).cpu().numpy()
        for image, page, written in zip(images, pages, batch.nonblank_lines, strict=True):
            lines = [line.polygon for line in written]
            read: list[str] | None = None
            if self._embedder is not None:
                read, seen = self._embedder.look(image, lines, self._characters)
                self._seen.setdefault(key, []).append(torch.from_numpy(seen))
            if self._reader is not None:
                if read is None or self._reader is not self._embedder:  # an engine that does both looks once
                    read = self._reader.read_lines(image, lines)
                self._read.setdefault(key, []).append(read)
            strokes = [line_structure(image, polygon, page[0]) for polygon in lines]
            self._structure.setdefault(key, []).append([None if found is None else found.score for found in strokes])

    def _keep_reading(self, shown: GridRow, key: str, number: int) -> None:
        if self._reader is not None:
            shown.read[key] = tuple(self._read[key][number])

    # --- scoring ---

    def row(self, spec: SamplingSpec, reference: str) -> RowScore:
        """The score of a row against the one whose key is `reference`."""
        key = spec.key
        own, others = (torch.cat(self._latents[k]) for k in (key, reference))
        latents = sliced_wasserstein(own, others, self._seed)
        return RowScore(
            key=key,
            role=spec.role,
            sampler=spec.sampler,
            steps=spec.steps,
            guidance=spec.guidance,
            nfe=self._nfe[key],
            latent_rmse=float(np.mean(self.rmse[key])),
            latent_rmse_95=mean_interval(self.rmse[key], None, self._resamples, self._seed),
            likeness=self._likeness(key, latents, [True] * len(self.truth)),
            lines=self.lines(key, reference, latents),
            seconds_per_image=median(self._seconds[key]),
            networks=self._network_scores(key),
        )

    def lines(self, key: str, reference: str, latents: SlicedDistance | None = None) -> LineScores:
        """The scores of the lines of a row, or of the originals or reconstructions; latents: of a row."""
        everything = [[True] * len(texts) for texts in self.truth]
        whole = self._group(key, everything)
        distance, interval = None, UNKNOWN
        if self._embedder is not None and any(self.truth):
            seen = SlicedDistance(self._seen[key], self._seen[reference], self._seed)
            distance, interval = seen.value(), seen.interval(self._distance_resamples)
        groups = {}
        for name in sorted({name for picture in self._groups for names in picture for name in names}):
            which = [[name in names for names in picture] for picture in self._groups]
            of_language = latents if name.startswith(LANGUAGE) else None
            groups[name] = self._group(key, which, of_language)
        return LineScores(whole.text, whole.structure, groups, distance, interval)

    @property
    def _distance_resamples(self) -> int:
        return min(DISTANCE_RESAMPLES, self._resamples)

    def _group(self, key: str, which: Sequence[Sequence[bool]], latents: SlicedDistance | None = None) -> GroupScore:
        """Of some of the lines of every picture; the likeness is that of the pictures that hold any."""
        text = None
        if self._reader is not None:
            read, truth = (
                [list(compress(lines, chosen)) for lines, chosen in zip(texts, which, strict=True)]
                for texts in (self._read[key], self.truth)
            )
            text = score_text(read, truth, self._resamples, self._seed)
        found = [
            [score for score in compress(scores, chosen) if score is not None]
            for scores, chosen in zip(self._structure[key], which, strict=True)
        ]
        likeness = None if latents is None else self._likeness(key, latents, [any(chosen) for chosen in which])
        return GroupScore(text, score_structure(found, self._resamples, self._seed), likeness)

    def _likeness(self, key: str, latents: SlicedDistance, pictures: Sequence[bool]) -> ImageSimilarity:
        ratios = list(compress(self._psnr[key], pictures))
        mean = float(np.mean(ratios))
        similar = [one for one in compress(self._background[key], pictures) if np.isfinite(one)]
        return ImageSimilarity(
            pictures=len(ratios),
            psnr_db=mean if np.isfinite(mean) else None,
            psnr_db_95=mean_interval(ratios, None, self._resamples, self._seed),
            background=float(np.mean(similar)) if similar else float("nan"),
            background_95=mean_interval(similar, None, self._resamples, self._seed),
            distance=latents.value(pictures),
            distance_95=latents.interval(self._distance_resamples, pictures),
        )

    def _network_scores(self, key: str) -> NetworkScores:
        if self._networks is None:
            return NetworkScores()
        return self._networks.scores(key, self._resamples, self._seed)


def groups_of(line: TextLine) -> tuple[str, str]:
    """The groups that a line is scored in: its language, and how many pixels high it is."""
    corners = reading_corners(line.polygon)
    height = min(float(np.linalg.norm(corners[n] - corners[0])) for n in (1, 3))
    return LANGUAGE + line.language, HEIGHT + next(name for limit, name in HEIGHTS if height < limit)
