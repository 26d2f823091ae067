"""Collects the pictures of an evaluation, batch by batch and row by row, and scores them when all are there.

A new metric of text lines is a function and an entry in LINE_METRICS; one of whole pictures goes into
`distill.evaluation.image_metrics`. Either then appears in the table, in summary.json and in MLflow.

Shape legend: B batch, H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import median

import numpy as np
import torch

from anytext2.core.batch import Batch, TextLine
from distill.diffusion.sampling import SampledBatch, SamplingSpec
from distill.evaluation.image_metrics import PICTURE_METRICS, rmse
from distill.evaluation.image_networks import ImageNetworkScores
from distill.evaluation.ocr import Embedder, OcrEngine, exact_match, ned, normalise, reading_corners
from distill.evaluation.scores import (
    HEIGHT,
    LANGUAGE,
    LATENT_DISTANCE,
    NO_INTERVAL,
    GroupScores,
    LineScores,
    NetworkScores,
    RowScore,
    Score,
    line_mean,
    picture_mean,
)
from distill.evaluation.sliced_wasserstein import SlicedWasserstein, latent_patch_distance
from distill.evaluation.strokes import line_structure
from distill.viz.grids import SampleImages, hint_to_image, to_uint8, to_unit_range

HEIGHTS = ((24.0, "under 24"), (32.0, "24-32"), (48.0, "32-48"), (float("inf"), "48 and more"))
"""Upper limits of a line's height in pixels, and the name of each group: see `line_groups`."""

MAX_DISTANCE_RESAMPLES = 300
"""Of the intervals of the sliced Wasserstein distances, which cost more than the others."""

ORIGINALS, RECONSTRUCTIONS = "originals", "reconstructions"
"""Keys of the data set's own pictures and of what the VAE makes of them, beside the rows' keys."""


@dataclass(frozen=True)
class ScoredLine:
    """One line of text as a line metric gets it.

    image: uint8 RGB [H, W, 3]; polygon: [P, 2] in its pixels; glyph_page: uint8 [H*g, W*g] in {0, 1}; text: what should
    be read; recognized: what the OCR engine read, "" without an engine.
    """

    image: np.ndarray
    polygon: np.ndarray
    glyph_page: np.ndarray
    text: str
    recognized: str


@dataclass(frozen=True)
class LineMetric:
    """A number for each line, None where it is not defined. title: of the table's column."""

    measure: Callable[[ScoredLine], float | None]
    title: str
    needs_ocr: bool = False


def _structure(line: ScoredLine) -> float | None:
    found = line_structure(line.image, line.polygon, line.glyph_page)
    return None if found is None else found.score


LINE_METRICS = {
    "exact_match": LineMetric(lambda line: exact_match(line.recognized, line.text), "exact match", needs_ocr=True),
    "ned": LineMetric(lambda line: ned(line.recognized, line.text), "NED", needs_ocr=True),
    "structure": LineMetric(_structure, "structure"),
}
"""By the metric's name in summary.json."""


class ScoreAccumulator:
    """The measurements of originals, reconstructions and every row, picture by picture.

    texts: all texts of the pictures to come. max_examples: pictures kept for grid and sheet. resamples, seed: of the
    bootstrap intervals. ocr_engine, embedder, networks: None where their scores are left out.
    """

    def __init__(
        self,
        texts: Sequence[str],
        max_examples: int,
        resamples: int,
        seed: int,
        ocr_engine: OcrEngine | None,
        embedder: Embedder | None = None,
        networks: ImageNetworkScores | None = None,
    ) -> None:
        self._max_examples, self._resamples, self._seed = max_examples, resamples, seed
        self._ocr_engine, self._embedder, self._networks = ocr_engine, embedder, networks
        self._characters = sorted({character for text in texts for character in normalise(text)})
        self.texts: list[list[str]] = []
        """Of each picture, those of its lines that are scored."""
        self.rmse: dict[str, list[float]] = defaultdict(list)
        self.examples: list[SampleImages] = []
        self.lines_not_scored = 0
        self._groups: list[list[tuple[str, ...]]] = []
        self._latents: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._pictures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._lines: dict[str, dict[str, list[list[float | None]]]] = defaultdict(lambda: defaultdict(list))
        self._embeddings: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._nfe: dict[str, int] = {}
        self._reference: SampledBatch | None = None

    # --- collecting ---

    def start_batch(self, batch: Batch, reconstructions: torch.Tensor) -> None:
        """A new batch, with the VAE's reconstructions of its pictures: [B, 3, H, W] in [0, 1]."""
        self._reference = None
        first = len(self.texts)
        originals = to_uint8(to_unit_range(batch.image))
        written = batch.nonblank_lines
        self.texts += [[line.text for line in lines] for lines in written]
        self._groups += [[line_groups(line) for line in lines] for lines in written]
        self.lines_not_scored += sum(map(len, batch.texts)) - sum(map(len, written))
        recognized = self._measure_lines(ORIGINALS, batch, originals)
        for b in range(min(batch.size, self._max_examples - len(self.examples))):
            hint = hint_to_image(batch.position[b], batch.glyph[b])
            caption, texts = batch.image_caption[b], tuple(self.texts[first + b])
            example = SampleImages(batch.name[b], originals[b], hint, {}, caption, texts)
            if self._ocr_engine is not None:
                example.recognized[ORIGINALS] = recognized[b]
            self.examples.append(example)
        self._measure_lines(RECONSTRUCTIONS, batch, to_uint8(reconstructions))

    def add_row(self, batch: Batch, sampled: SampledBatch) -> None:
        """One row of the batch that was started; its first row is the reference of the others."""
        key = sampled.spec.key
        first = len(self.rmse[key])
        self._reference = self._reference or sampled
        self.rmse[key] += rmse(sampled.latent, self._reference.latent).tolist()
        self._latents[key].append(sampled.latent.float().cpu())
        for name, metric in PICTURE_METRICS.items():
            self._pictures[key][name] += metric.measure(sampled.image, self._reference.image, batch).tolist()
        self._seconds[key].append(sampled.seconds / batch.size)
        self._nfe[key] = sampled.nfe
        images = to_uint8(sampled.image)
        recognized = self._measure_lines(key, batch, images)
        if self._networks is not None:
            self._networks.update(key, images, batch.image_caption)
        for b, example in enumerate(self.examples[first : first + batch.size]):
            example.sampled[key] = images[b]
            if self._ocr_engine is not None:
                example.recognized[key] = recognized[b]

    def _measure_lines(self, key: str, batch: Batch, images: np.ndarray) -> list[tuple[str, ...]]:
        """Measures the lines of a batch's pictures, uint8 [B, H, W, 3]; returns what the OCR engine read in each."""
        pages = batch.glyph.to(torch.uint8).cpu().numpy()
        recognized = []
        for image, page, written in zip(images, pages, batch.nonblank_lines, strict=True):
            texts = self._read(key, image, [line.polygon for line in written])
            lines = [
                ScoredLine(image, line.polygon, page[0], line.text, text)
                for line, text in zip(written, texts, strict=True)
            ]
            for name, metric in LINE_METRICS.items():
                if self._ocr_engine is not None or not metric.needs_ocr:
                    self._lines[key][name].append([metric.measure(line) for line in lines])
            recognized.append(tuple(texts))
        return recognized

    def _read(self, key: str, image: np.ndarray, polygons: list[np.ndarray]) -> list[str]:
        """The texts of a picture's lines, "" without an OCR engine; keeps the lines' embeddings."""
        texts = [""] * len(polygons)
        if self._embedder is not None:
            texts, embedding = self._embedder.embed(image, polygons, self._characters)
            self._embeddings[key].append(torch.from_numpy(embedding))
        if self._ocr_engine is not None and self._ocr_engine is not self._embedder:  # one that does both has read
            texts = self._ocr_engine.recognize_lines(image, polygons)
        return texts

    # --- scoring ---

    def row(self, spec: SamplingSpec, reference: str) -> RowScore:
        """The scores of a row against the one whose key is `reference`."""
        key = spec.key
        own, others = (torch.cat(self._latents[k]) for k in (key, reference))
        distance = latent_patch_distance(own, others, self._seed)
        return RowScore(
            key=key,
            role=spec.role,
            sampler=spec.sampler,
            steps=spec.steps,
            guidance=spec.guidance,
            nfe=self._nfe[key],
            latent_rmse=picture_mean(self.rmse[key], self._resamples, self._seed),
            seconds_per_image=median(self._seconds[key]),
            pictures=self._picture_scores(key, distance, [True] * len(self.texts)),
            lines=self.line_scores(key, reference, distance),
            networks=self._network_scores(key),
        )

    def line_scores(self, key: str, reference: str, distance: SlicedWasserstein | None = None) -> LineScores:
        """The scores of the lines of a row, or of the originals or reconstructions.

        distance: of a row's latents to the reference's, for the scores of the pictures of each language.
        """
        text_distance = Score(None, NO_INTERVAL)
        if self._embedder is not None and any(self.texts):
            of_lines = SlicedWasserstein(self._embeddings[key], self._embeddings[reference], self._seed)
            text_distance = Score(of_lines.value(), of_lines.interval(self._distance_resamples))
        groups = {}
        for name in sorted({name for picture in self._groups for names in picture for name in names}):
            chosen = [[name in names for names in picture] for picture in self._groups]
            pictures: dict[str, Score] = {}
            if distance is not None and name.startswith(LANGUAGE):
                pictures = self._picture_scores(key, distance, [any(lines) for lines in chosen])
            groups[name] = GroupScores(self._line_means(key, chosen), pictures)
        everything = [[True] * len(texts) for texts in self.texts]
        return LineScores(self._line_means(key, everything), groups, text_distance)

    @property
    def _distance_resamples(self) -> int:
        return min(MAX_DISTANCE_RESAMPLES, self._resamples)

    def _line_means(self, key: str, chosen: Sequence[Sequence[bool]]) -> dict[str, Score]:
        """The line metrics over the chosen lines of every picture."""
        scores = {}
        for name, metric in LINE_METRICS.items():
            if metric.needs_ocr and self._ocr_engine is None:
                scores[name] = Score()
                continue
            values = [
                [value for value in compress(picture, which) if value is not None]
                for picture, which in zip(self._lines[key][name], chosen, strict=True)
            ]
            scores[name] = line_mean(values, self._resamples, self._seed)
        return scores

    def _picture_scores(self, key: str, distance: SlicedWasserstein, chosen: Sequence[bool]) -> dict[str, Score]:
        """The picture metrics and the distance of the latents, over the chosen pictures."""
        scores = {}
        for name, metric in PICTURE_METRICS.items():
            values = list(compress(self._pictures[key][name], chosen))
            if metric.skip_undefined:
                values = [value for value in values if np.isfinite(value)]
            scores[name] = picture_mean(values, self._resamples, self._seed)
        interval = distance.interval(self._distance_resamples, chosen)
        scores[LATENT_DISTANCE] = Score(distance.value(chosen), interval, sum(chosen))
        return scores

    def _network_scores(self, key: str) -> NetworkScores:
        return NetworkScores() if self._networks is None else self._networks.compute(key, self._resamples, self._seed)


def line_groups(line: TextLine) -> tuple[str, str]:
    """The groups that a line is scored in: by language, and by height (the side of its box across the text)."""
    corners = reading_corners(line.polygon)
    height = min(float(np.linalg.norm(corners[n] - corners[0])) for n in (1, 3))
    return LANGUAGE + line.language, HEIGHT + next(name for limit, name in HEIGHTS if height < limit)
