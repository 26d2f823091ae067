"""Measures a few-step student against its teacher on held-out pictures, every way of sampling from the same noise.

Each row, a way of sampling (`SamplingSpec`), is compared with the reference row, the teacher's 50 guided DDIM steps. An
OCR engine reads every row, and also the original pictures and their VAE reconstructions, which bound what can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytext2.core.batch import Sample, collate
from distill.adapters.roles import SamplingRoles
from distill.diffusion.samplers import LCM_OPTIONS, SamplerOptions
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch, to_pictures
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.accumulator import ORIGINALS, RECONSTRUCTIONS, ScoreAccumulator
from distill.evaluation.image_networks import ImageNetworkScores
from distill.evaluation.ocr import Embedder, OcrEngine
from distill.evaluation.reference import ReferenceCache, reference_fingerprint
from distill.evaluation.scores import LineScores, PairedComparison, RowScore, compare_pairs, to_json
from distill.viz.grids import SampleImages


@dataclass
class EvaluationConfig:
    """Options of an evaluation.

    batch: pictures sampled together. guidance: scale of the teacher and of guided undistilled rows. student_guidance:
    in addition to what the student has learned, at twice the UNet calls. negative_prompt: of all guidance.
    teacher_steps: the first entry is the reference. undistilled_steps: steps at which the undistilled model is
    sampled, with DDIM, with the consistency sampler, and with the student's sampler if that is another one. gamma: of
    the student's trajectory sampler. seed: of all noise. shown: pictures in grid and sheet. resamples: of the bootstrap
    intervals. ocr_threads: of the OCR engine.

    Raises ValueError naming an option that is impossible.
    """

    batch: int = 8
    guidance: float = 7.5
    student_guidance: float = 1.0
    negative_prompt: str = ""
    teacher_steps: list[int] = field(default_factory=lambda: [50, 20])
    undistilled_steps: list[int] = field(default_factory=lambda: [4])
    student_steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    student_sampler: str = "consistency"
    gamma: float = 0.3
    seed: int = 0
    shown: int = 8
    resamples: int = 2000
    ocr_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "shown", "resamples", "ocr_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name}={getattr(self, name)} must be at least 1")
        for name in ("teacher_steps", "undistilled_steps", "student_steps"):
            steps = list(getattr(self, name))
            if len(set(steps)) < len(steps) or any(n < 1 for n in steps):
                raise ValueError(f"evaluation.{name}={steps}: numbers from 1 up, none of them twice")
        if not self.teacher_steps:
            raise ValueError("evaluation.teacher_steps=[]: the first entry is the reference, 50 is usual")
        self.rows()  # each SamplingSpec validates itself

    def rows(self) -> tuple[SamplingSpec, ...]:
        """All rows; the first is the reference."""
        sampler, undistilled = self.student_sampler, self.undistilled_steps
        # The student's sampler may be the better one for the undistilled model, too.
        third = [] if sampler in ("ddim", "consistency") else undistilled
        return (
            *(SamplingSpec("teacher", "ddim", n, self.guidance) for n in self.teacher_steps),
            *(SamplingSpec("undistilled", "ddim", n, self.guidance) for n in undistilled),
            *(SamplingSpec("undistilled", "consistency", n) for n in undistilled),
            *(SamplingSpec("undistilled", sampler, n, self.guidance, self.gamma) for n in third),
            *(SamplingSpec("student", sampler, n, self.student_guidance, self.gamma) for n in self.student_steps),
        )


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. The first row is the reference.

    pictures: how many. lines_not_scored: of nothing but whitespace. lines_beyond_charset: scored, but with a character
    that the OCR engine does not know. examples: the first pictures with all their rows, for grid and sheet.
    """

    pictures: int
    seed: int
    rows: tuple[RowScore, ...]
    comparisons: tuple[PairedComparison, ...]
    originals: LineScores
    reconstructions: LineScores
    ocr_engine: str | None
    lines_not_scored: int
    lines_beyond_charset: int
    examples: tuple[SampleImages, ...] = field(repr=False, default=())

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, for summary.json."""
        return {
            "pictures": self.pictures,
            "seed": self.seed,
            "rows": [row.to_json() for row in self.rows],
            "comparisons": to_json(self.comparisons),
            "originals": self.originals.to_json(),
            "reconstructions": self.reconstructions.to_json(),
            "ocr_engine": self.ocr_engine,
            "lines_not_scored": self.lines_not_scored,
            "lines_beyond_charset": self.lines_beyond_charset,
            "reference": self.rows[0].key,
        }

    def metrics(self) -> dict[str, float]:
        """For the tracker, by 'ROW/METRIC'."""
        return {name: value for row in self.rows for name, value in row.metrics().items()}


def evaluate(
    roles: SamplingRoles,
    samples: Sequence[Sample],
    schedule: NoiseSchedule,
    config: EvaluationConfig,
    ocr_engine: OcrEngine | None,
    options: SamplerOptions = LCM_OPTIONS,
    progress: Callable[[int, int], None] | None = None,
    embedder: Embedder | None = None,
    networks: ImageNetworkScores | None = None,
    reference: Path | None = None,
) -> Evaluation:
    """Scores every row of `config` on held-out samples.

    ocr_engine: None leaves the text scores out. progress: called with (pictures done, all pictures) after every batch.
    embedder: None leaves the text distance out. networks: None leaves CLIP score, FID and KID out. reference: a file
    for the first row's latents, which are read from it, or written where it does not exist (`ReferenceCache`).
    Raises ValueError without samples, or where the reference file belongs to another row.
    """
    if not samples:
        raise ValueError("evaluation: no samples; the dataset must hold at least one readable picture")
    specs = config.rows()
    device = next(roles.model.parameters()).device
    texts = [text for sample in samples for text in sample.texts]
    scores = ScoreAccumulator(texts, config.shown, config.resamples, config.seed, ocr_engine, embedder, networks)
    cache = None
    if reference is not None:
        with roles.teacher() as teacher:
            fingerprint = reference_fingerprint(teacher, samples, specs[0], config.seed, config.negative_prompt)
        cache = ReferenceCache(reference, fingerprint)
    to_sample = specs[1:] if cache is not None and cache.is_loaded else specs
    negative = config.negative_prompt if any(spec.guidance != 1.0 for spec in to_sample) else None
    with evaluation_mode(roles.model):
        prepare = SamplingPreparation(roles, config.seed, negative)
        for first in range(0, len(samples), config.batch):
            batch = collate(samples[first : first + config.batch]).to(device).normalized()
            inputs = prepare(batch)
            with torch.inference_mode():
                reconstructions = to_pictures(roles.model, roles.model.encode(batch.image))
            scores.start_batch(batch, reconstructions)
            if cache is not None and cache.is_loaded:
                scores.add_row(batch, cache.sampled_batch(roles.model, specs[0], first, batch.size))
            for sampled in sample_batch(roles, inputs, to_sample, schedule, options):
                scores.add_row(batch, sampled)
                if cache is not None and sampled.spec == specs[0]:
                    cache.add(sampled)
            if progress is not None:
                progress(min(first + config.batch, len(samples)), len(samples))
    if cache is not None and not cache.is_loaded:
        cache.save()
    return _summarize(scores, specs, config, ocr_engine)


def _summarize(
    scores: ScoreAccumulator, specs: Sequence[SamplingSpec], config: EvaluationConfig, ocr_engine: OcrEngine | None
) -> Evaluation:
    reference = specs[0].key
    students = [spec for spec in specs if spec.role == "student"]
    pairs = [(s.key, o.key) for s in students for o in specs if o.role == "undistilled" and o.steps == s.steps]
    errors, n, seed = scores.rmse, config.resamples, config.seed
    beyond_charset = 0
    if ocr_engine is not None:
        beyond_charset = sum(not ocr_engine.in_charset(text) for texts in scores.texts for text in texts)
    return Evaluation(
        pictures=len(scores.texts),
        seed=seed,
        rows=tuple(scores.row(spec, reference) for spec in specs),
        comparisons=tuple(compare_pairs(key, errors[key], other, errors[other], n, seed) for key, other in pairs),
        originals=scores.line_scores(ORIGINALS, reference),
        reconstructions=scores.line_scores(RECONSTRUCTIONS, reference),
        ocr_engine=ocr_engine.name if ocr_engine else None,
        lines_not_scored=scores.lines_not_scored,
        lines_beyond_charset=beyond_charset,
        examples=tuple(scores.examples),
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
