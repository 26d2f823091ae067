"""AnyText-benchmark: the published protocol (Tuo et al. 2023, AnyText, section 5.1; AnyText2's scripts in eval/).

Four pictures of every prompt by 20 guided DDIM steps, no colours, the default font's glyphs as font hint. They are
saved as JPEG and judged as saved: Sen.ACC is the share of lines read exactly, NED the mean of 1 - edit distance.
Differences to the authors' scripts: the noise comes from this project's generator (seed 100 gives other pictures), and
nothing is added to a prompt.

Shape legend: B pictures, H/W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anytext2.core.batch import Sample, collate
from anytext2.core.rng import Draws
from anytext2.data.image_file import read_image
from distill.adapters.roles import Roles
from distill.diffusion.samplers import SamplerOptions
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.benchmark_data import SEED, as_told, file_names
from distill.evaluation.image_networks import NetworkKit, Networks
from distill.evaluation.ocr import OcrEngine, levenshtein
from distill.evaluation.score_table import aligned, with_interval
from distill.evaluation.scores import Interval, NetworkScores, mean_interval, to_plain
from distill.viz.grids import GridRow, hint_picture, pixels, to_uint8

PROTOCOL = "anytext-benchmark"
PICTURES_OF_A_PROMPT = 4
STEPS, GUIDANCE = 20, 7.5
_JPEG_QUALITY = 95  # OpenCV's default, which the authors' pictures have


@dataclass(frozen=True)
class BenchmarkRow:
    """One way of sampling on one set. sen_acc and ned in 0..1 over all lines of all pictures; their intervals resample
    prompts, because the pictures of a prompt share its fate."""

    key: str
    role: str
    steps: int
    guidance: float
    pictures: int
    lines: int
    sen_acc: float
    sen_acc_95: Interval
    ned: float
    ned_95: Interval
    networks: NetworkScores

    def to_dict(self) -> dict[str, Any]:
        flat = to_plain(self)
        return {**flat, **flat.pop("networks")}


@dataclass
class _BenchmarkCounts:
    hits: list[int] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    pictures: int = 0


def benchmark_rows(student_steps: Sequence[int], sampler: str, gamma: float) -> list[SamplingSpec]:
    """The teacher as published, and the student at its numbers of steps."""
    student = [SamplingSpec("student", sampler, n, gamma=gamma) for n in student_steps]
    return [SamplingSpec("teacher", "ddim", STEPS, GUIDANCE), *student]


class Benchmark:
    """Draws, saves and judges the pictures of one set.

    out: pictures go to out/ROW/SET/<img>_<k>.jpg. reader: None leaves Sen.ACC and NED out (NaN). shown: how many
    prompts are kept for a sheet.
    """

    def __init__(
        self,
        roles: Roles,
        schedule: NoiseSchedule,
        rows: Sequence[SamplingSpec],
        out: Path,
        reader: OcrEngine | None,
        kit: NetworkKit | None,
        options: SamplerOptions,
        negative_prompt: str = "",
        batch: int = 8,
        shown: int = 4,
    ) -> None:
        self._roles, self._schedule, self._rows, self._out = roles, schedule, rows, out
        self._reader, self._kit, self._options = reader, kit, options
        self._negative, self._prompts, self._most_shown = negative_prompt, max(1, batch // PICTURES_OF_A_PROMPT), shown
        self.shown: list[GridRow] = []

    def run(
        self, samples: Sequence[Sample], part: str, resamples: int, progress: Callable[[int, int], None] | None = None
    ) -> list[BenchmarkRow]:
        """Of the samples of one set, whose pictures and FID reference lie in sub-folders called `part`."""
        names = file_names([sample.name for sample in samples])
        tallies = {spec.key: _BenchmarkCounts() for spec in self._rows}
        networks = None if self._kit is None else Networks(self._kit, part)
        first_shown = len(self.shown)
        for first in range(0, len(samples), self._prompts):
            some = [as_told(sample) for sample in samples[first : first + self._prompts]]
            self._keep(some, first_shown)
            self._paint(some, names[first : first + self._prompts], part, tallies, networks, first_shown + first)
            if progress is not None:
                progress(first + len(some), len(samples))
        return [self._row(spec, tallies[spec.key], networks, resamples) for spec in self._rows]

    def _keep(self, samples: Sequence[Sample], first_shown: int) -> None:
        for sample in samples[: max(0, first_shown + self._most_shown - len(self.shown))]:
            image = to_uint8(pixels(collate([sample]).normalized().image))[0]
            texts = tuple(line.text for line in sample.nonblank_lines)
            hint = hint_picture(sample.position, sample.glyph)
            self.shown.append(GridRow(sample.name, image, hint, {}, sample.image_caption, texts))

    def _paint(
        self,
        samples: Sequence[Sample],
        names: Sequence[str],
        part: str,
        tallies: dict[str, _BenchmarkCounts],
        networks: Networks | None,
        number: int,
    ) -> None:
        """Draws some prompts in every way; `number` is the place of the first one among those shown."""
        device = next(self._roles.model.parameters()).device
        copies = PICTURES_OF_A_PROMPT
        batch = collate([sample for sample in samples for _ in range(copies)]).to(device).normalized()
        scene = prepare_sampling(self._roles, batch, SEED, self._negative)
        scene = replace(scene, draws=Draws(SEED, tuple(range(copies)) * len(samples), batch.index))
        for painting in sample_batch(self._roles, scene, self._rows, self._schedule, self._options):
            key, drawn = painting.spec.key, to_uint8(painting.image)
            for at, (sample, name) in enumerate(zip(samples, names, strict=True)):
                of_prompt = drawn[at * copies : (at + 1) * copies]
                images = np.stack([self._saved(key, part, f"{name}_{k}.jpg", one) for k, one in enumerate(of_prompt)])
                read = self._judge(tallies[key], sample, images)
                if networks is not None:
                    networks.look(key, images, [sample.image_caption] * copies)
                if number + at < len(self.shown):
                    self.shown[number + at].rows[key] = images[0]
                    if self._reader is not None:
                        self.shown[number + at].read[key] = tuple(read[0])

    def _saved(self, key: str, part: str, name: str, image: np.ndarray) -> np.ndarray:
        path = self._out / key / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=_JPEG_QUALITY)
        return read_image(path)

    def _judge(self, counts: _BenchmarkCounts, sample: Sample, images: np.ndarray) -> list[list[str]]:
        """Reads the pictures [B, H, W, 3] of a prompt; returns what was read."""
        counts.pictures += len(images)
        if self._reader is None:
            return []
        lines = sample.nonblank_lines
        read = [self._reader.read_lines(image, [line.polygon for line in lines]) for image in images]
        pairs = [(found, line.text) for texts in read for found, line in zip(texts, lines, strict=True)]
        counts.hits.append(sum(found == truth for found, truth in pairs))
        counts.similarity.append(sum(published_ned(found, truth, self._reader) for found, truth in pairs))
        counts.lines.append(len(pairs))
        return read

    def _row(
        self, spec: SamplingSpec, counts: _BenchmarkCounts, networks: Networks | None, resamples: int
    ) -> BenchmarkRow:
        lines = sum(counts.lines)
        return BenchmarkRow(
            spec.key,
            spec.role,
            spec.steps,
            spec.guidance,
            counts.pictures,
            lines,
            sum(counts.hits) / lines if lines else math.nan,
            mean_interval(counts.hits, counts.lines, resamples, SEED),
            sum(counts.similarity) / lines if lines else math.nan,
            mean_interval(counts.similarity, counts.lines, resamples, SEED),
            NetworkScores() if networks is None else networks.scores(spec.key, resamples, SEED),
        )


def published_ned(read: str, truth: str, reader: OcrEngine) -> float:
    """1 - edit distance / (length of the longer text + 1e-5), nothing normalised, as in AnyText's eval_dgocr.py.

    All characters that the engine does not know count as the same one.
    """
    first, second = ("".join(c if reader.can_write(c) else "\0" for c in text) for text in (read, truth))
    return 1.0 - levenshtein(first, second) / (max(len(first), len(second)) + 1e-5)


def benchmark_table(sets: dict[str, list[BenchmarkRow]]) -> str:
    """All rows of all sets as text for a terminal."""
    rows = [(name, row) for name, of_set in sets.items() for row in of_set]
    networks = [
        (name, label)
        for name, label in (("clip_score", "CLIP score"), ("fid", "FID"), ("kid", "KID"))
        if any(getattr(row.networks, name) is not None for _, row in rows)
    ]
    head = ["set", "row", "pictures", "lines", "Sen.ACC (95 %)", "NED (95 %)", *(label for _, label in networks)]
    body = []
    for name, row in rows:
        read = ["-", "-"]
        if row.lines:
            read = [with_interval(row.sen_acc, row.sen_acc_95), with_interval(row.ned, row.ned_95)]
        measured = [getattr(row.networks, key) for key, _ in networks]
        scores = ["-" if value is None else f"{value:.4f}" for value in measured]
        body.append([name, f"{row.role} {row.steps}", str(row.pictures), str(row.lines), *read, *scores])
    return aligned(head, body)
