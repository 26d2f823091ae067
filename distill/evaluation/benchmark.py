"""AnyText-benchmark: the published protocol (Tuo et al. 2023, AnyText, section 5.1; AnyText2's scripts in eval/).

Four pictures of every prompt are sampled with 20 guided DDIM steps, without colours, and with the default font's glyphs
as font hint. They are saved as JPEG and scored as saved. Sen.ACC is the share of lines read exactly, NED the mean of
1 - normalised edit distance. Differences to the authors' scripts: the noise comes from this project's generator (seed
100 gives other pictures), and nothing is added to a prompt.

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
from distill.adapters.roles import SamplingRoles
from distill.diffusion.samplers import SamplerOptions
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.benchmark_data import SEED, benchmark_conditions, unique_file_stems
from distill.evaluation.image_networks import ImageNetworks, ImageNetworkScores
from distill.evaluation.ocr import OcrEngine, levenshtein
from distill.evaluation.score_table import align_columns, format_with_interval, measured_networks, network_cells
from distill.evaluation.scores import NETWORK_COLUMNS, Interval, NetworkScores, mean_interval, to_json
from distill.viz.grids import SampleImages, hint_to_image, to_uint8, to_unit_range

IMAGES_PER_PROMPT = 4
STEPS, GUIDANCE = 20, 7.5
_JPEG_QUALITY = 95  # OpenCV's default, which the authors' pictures have


@dataclass(frozen=True)
class BenchmarkRow:
    """The scores of one way of sampling on one set.

    sen_acc, ned: in 0..1, over all lines of all pictures; NaN without an OCR engine. Their intervals resample prompts,
    because the pictures of a prompt share its fate.
    """

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

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary."""
        flat = to_json(self)
        return {**flat, **flat.pop("networks")}


@dataclass
class _Counts:
    """Of one row: hits, similarity and lines have an entry a prompt."""

    hits: list[int] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    pictures: int = 0


def benchmark_rows(student_steps: Sequence[int], sampler: str, gamma: float) -> list[SamplingSpec]:
    """The teacher as published, and the student at its numbers of steps."""
    student = [SamplingSpec("student", sampler, n, gamma=gamma) for n in student_steps]
    return [SamplingSpec("teacher", "ddim", STEPS, GUIDANCE), *student]


class Benchmark:
    """Samples, saves and scores the pictures of the benchmark's sets.

    out: pictures go to out/ROW/SUBFOLDER/<img>_<k>.jpg. ocr_engine: None leaves Sen.ACC and NED out. networks: None
    leaves CLIP score, FID and KID out. max_examples: prompts of each set kept for a sheet.
    """

    def __init__(
        self,
        roles: SamplingRoles,
        schedule: NoiseSchedule,
        rows: Sequence[SamplingSpec],
        out: Path,
        ocr_engine: OcrEngine | None,
        networks: ImageNetworks | None,
        options: SamplerOptions,
        negative_prompt: str = "",
        batch: int = 8,
        max_examples: int = 4,
    ) -> None:
        self._roles, self._schedule, self._rows, self._out = roles, schedule, rows, out
        self._ocr_engine, self._networks, self._options = ocr_engine, networks, options
        self._prepare, self._max_examples = SamplingPreparation(roles, SEED, negative_prompt), max_examples
        self._prompts = max(1, batch // IMAGES_PER_PROMPT)  # sampled together
        self.examples: list[SampleImages] = []

    def run(
        self,
        samples: Sequence[Sample],
        subfolder: str,
        resamples: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[BenchmarkRow]:
        """The scores of every row on the samples of one set.

        subfolder: of the pictures, and of the FID reference. progress: called with (prompts done, all prompts).
        """
        names = unique_file_stems([sample.name for sample in samples])
        counts = {spec.key: _Counts() for spec in self._rows}
        networks = None if self._networks is None else ImageNetworkScores(self._networks, subfolder)
        first_example = len(self.examples)
        for first in range(0, len(samples), self._prompts):
            prompts = [benchmark_conditions(sample) for sample in samples[first : first + self._prompts]]
            self._add_examples(prompts, first_example)
            stems = names[first : first + self._prompts]
            self._sample(prompts, stems, subfolder, counts, networks, first_example + first)
            if progress is not None:
                progress(first + len(prompts), len(samples))
        return [self._row(spec, counts[spec.key], networks, resamples) for spec in self._rows]

    def _add_examples(self, samples: Sequence[Sample], first_example: int) -> None:
        for sample in samples[: max(0, first_example + self._max_examples - len(self.examples))]:
            image = to_uint8(to_unit_range(collate([sample]).normalized().image))[0]
            texts = tuple(line.text for line in sample.nonblank_lines)
            hint = hint_to_image(sample.position, sample.glyph)
            self.examples.append(SampleImages(sample.name, image, hint, {}, sample.image_caption, texts))

    def _sample(
        self,
        samples: Sequence[Sample],
        names: Sequence[str],
        subfolder: str,
        counts: dict[str, _Counts],
        networks: ImageNetworkScores | None,
        number: int,
    ) -> None:
        """Samples and scores some prompts with every row; number: index of the first one in `self.examples`."""
        device = next(self._roles.model.parameters()).device
        copies = IMAGES_PER_PROMPT
        batch = collate([sample for sample in samples for _ in range(copies)]).to(device).normalized()
        inputs = replace(self._prepare(batch), draws=Draws(SEED, tuple(range(copies)) * len(samples), batch.index))
        for sampled in sample_batch(self._roles, inputs, self._rows, self._schedule, self._options):
            key, pictures = sampled.spec.key, to_uint8(sampled.image)
            for at, (sample, name) in enumerate(zip(samples, names, strict=True)):
                of_prompt = pictures[at * copies : (at + 1) * copies]
                folder = self._out / key / subfolder
                images = np.stack([_save_jpeg(folder / f"{name}_{k}.jpg", one) for k, one in enumerate(of_prompt)])
                recognized = self._score(counts[key], sample, images)
                if networks is not None:
                    networks.update(key, images, [sample.image_caption] * copies)
                if number + at < len(self.examples):
                    self.examples[number + at].sampled[key] = images[0]
                    if self._ocr_engine is not None:
                        self.examples[number + at].recognized[key] = tuple(recognized[0])

    def _score(self, counts: _Counts, sample: Sample, images: np.ndarray) -> list[list[str]]:
        """Reads and scores the lines of a prompt's pictures [B, H, W, 3]; returns the texts that were read."""
        counts.pictures += len(images)
        if self._ocr_engine is None:
            return []
        lines = sample.nonblank_lines
        recognized = [self._ocr_engine.recognize_lines(image, [line.polygon for line in lines]) for image in images]
        pairs = [(found, line.text) for texts in recognized for found, line in zip(texts, lines, strict=True)]
        counts.hits.append(sum(found == truth for found, truth in pairs))
        counts.similarity.append(sum(benchmark_ned(found, truth, self._ocr_engine) for found, truth in pairs))
        counts.lines.append(len(pairs))
        return recognized

    def _row(
        self, spec: SamplingSpec, counts: _Counts, networks: ImageNetworkScores | None, resamples: int
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
            NetworkScores() if networks is None else networks.compute(spec.key, resamples, SEED),
        )


def _save_jpeg(path: Path, image: np.ndarray) -> np.ndarray:
    """Saves the picture; returns it as it is read back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=_JPEG_QUALITY)
    return read_image(path)


def benchmark_ned(read: str, truth: str, ocr_engine: OcrEngine) -> float:
    """1 - edit distance / (length of the longer text + 1e-5), nothing normalised, as in AnyText's eval_dgocr.py.

    All characters that the engine does not know count as the same one.
    """
    first, second = ("".join(c if ocr_engine.in_charset(c) else "\0" for c in text) for text in (read, truth))
    return 1.0 - levenshtein(first, second) / (max(len(first), len(second)) + 1e-5)


def format_benchmark(sets: dict[str, list[BenchmarkRow]]) -> str:
    """The rows of all sets as a table for a terminal."""
    rows = [(name, row) for name, of_set in sets.items() for row in of_set]
    networks = measured_networks(row.networks for _, row in rows)
    head = [
        "set",
        "row",
        "pictures",
        "lines",
        "Sen.ACC (95 %)",
        "NED (95 %)",
        *(NETWORK_COLUMNS[name] for name in networks),
    ]
    body = []
    for name, row in rows:
        text = ["-", "-"]
        if row.lines:
            text = [format_with_interval(row.sen_acc, row.sen_acc_95), format_with_interval(row.ned, row.ned_95)]
        counts = [str(row.pictures), str(row.lines)]
        body.append([name, f"{row.role} {row.steps}", *counts, *text, *network_cells(row.networks, networks)])
    return align_columns(head, body)
