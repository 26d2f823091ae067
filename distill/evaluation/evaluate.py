"""Measures a few-step student against its teacher on held-out pictures: same start noise, every way of sampling.

Each row (a way of sampling, `painting.SamplingSpec`) is compared with the reference row, the teacher's 50 guided DDIM
steps, and read by an OCR engine, beside the originals and their VAE reconstructions, which bound what can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from anytext2.core.batch import Sample, collate
from distill.adapters.roles import Roles
from distill.diffusion.samplers import LCM_OPTIONS, SamplerOptions
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.evaluation.accumulator import ScoreAccumulator
from distill.evaluation.image_networks import Networks
from distill.evaluation.ocr import Embedder, OcrEngine
from distill.evaluation.reference import Reference, origin_of
from distill.evaluation.scores import Comparison, LineScores, RowScore, compare, lines_to_plain, row_to_plain, to_plain
from distill.viz.grids import GridRow, pixels


@dataclass
class EvaluationConfig:
    """Options of an evaluation.

    batch: pictures computed together; guidance: of the teacher and of guided undistilled rows; student_guidance: on
    top of what the student has learned, at twice the calls; negative_prompt: of all guidance; seed: of all noise;
    undistilled_steps: steps at which the undistilled model is tried with both samplers, and with the student's where
    that is a third one; student_sampler: with gamma where it is the trajectory sampler; shown: pictures kept for the
    grid; resamples: of the bootstrap intervals; ocr_threads: of the OCR engine.
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
        self.rows()  # which check themselves

    def _own_grid(self) -> list[int]:
        """Steps at which the undistilled model is tried with the student's sampler too: it may be the better one."""
        return [] if self.student_sampler in ("ddim", "consistency") else self.undistilled_steps

    def rows(self) -> tuple[SamplingSpec, ...]:
        """All rows; the first is the reference."""
        sampler = self.student_sampler
        return (
            *(SamplingSpec("teacher", "ddim", n, self.guidance) for n in self.teacher_steps),
            *(SamplingSpec("undistilled", "ddim", n, self.guidance) for n in self.undistilled_steps),
            *(SamplingSpec("undistilled", "consistency", n) for n in self.undistilled_steps),
            *(SamplingSpec("undistilled", sampler, n, self.guidance, self.gamma) for n in self._own_grid()),
            *(SamplingSpec("student", sampler, n, self.student_guidance, self.gamma) for n in self.student_steps),
        )


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found. The first row is the reference."""

    pictures: int
    seed: int
    rows: tuple[RowScore, ...]
    comparisons: tuple[Comparison, ...]
    originals: LineScores
    reconstructions: LineScores
    ocr_engine: str | None
    lines_not_scored: int
    lines_beyond_charset: int
    shown: tuple[GridRow, ...] = field(repr=False, default=())

    def row(self, key: str) -> RowScore:
        """The row of that key. Raises ValueError where there is none."""
        for row in self.rows:
            if row.key == key:
                return row
        raise ValueError(f"evaluation has no row {key!r}; there are {', '.join(row.key for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the pictures."""
        plain: dict[str, Any] = to_plain(replace(self, shown=(), rows=()))
        plain |= {name: lines_to_plain(getattr(self, name)) for name in ("originals", "reconstructions")}
        plain["reference"] = self.rows[0].key
        plain["rows"] = [row_to_plain(row) for row in self.rows]
        del plain["shown"]
        return plain


def evaluate(
    roles: Roles,
    samples: Sequence[Sample],
    schedule: NoiseSchedule,
    config: EvaluationConfig,
    reader: OcrEngine | None,
    options: SamplerOptions = LCM_OPTIONS,
    progress: Callable[[int, int], None] | None = None,
    embedder: Embedder | None = None,
    networks: Networks | None = None,
    reference: Path | None = None,
) -> Evaluation:
    """Scores every row of `config` on held-out samples.

    reader: None leaves the text scores out. progress: called with (pictures done, all pictures) after every batch.
    embedder: None leaves the text distance out; networks: None leaves CLIP score, FID and KID out. reference: the file
    of the first row's latents, which are taken from it, or kept in it (`distill.reference`).
    Lines of nothing but whitespace are not scored; lines with a character that the engine does not know are, and both
    are counted. Raises ValueError on an empty set of samples.
    """
    if not samples:
        raise ValueError("evaluation: no samples; the dataset must hold at least one readable picture")
    specs = config.rows()
    device = next(roles.model.parameters()).device
    texts = [text for sample in samples for text in sample.texts]
    accumulator = ScoreAccumulator(texts, config.shown, config.resamples, config.seed, reader, embedder, networks)
    kept = None
    if reference is not None:
        origin = origin_of(roles.model, samples, specs[0], config.seed, config.negative_prompt)
        kept = Reference(reference, origin)
    sampled = specs[1:] if kept is not None and kept.is_kept else specs
    negative = config.negative_prompt if any(spec.guidance != 1.0 for spec in sampled) else None
    with evaluating(roles.model):
        for first in range(0, len(samples), config.batch):
            batch = collate(samples[first : first + config.batch]).to(device).normalized()
            scene = prepare_sampling(roles, batch, config.seed, negative)
            with roles.teacher():
                rebuilt = pixels(roles.model.decode(roles.model.encode(batch.image)))
            accumulator.start(batch, rebuilt)
            if kept is not None and kept.is_kept:
                with roles.teacher():
                    accumulator.add(batch, kept.painting(roles.model, specs[0], first, batch.size))
            for painting in sample_batch(roles, scene, sampled, schedule, options):
                accumulator.add(batch, painting)
                if kept is not None and painting.spec == specs[0]:
                    kept.add(painting)
            if progress is not None:
                progress(min(first + config.batch, len(samples)), len(samples))
    if kept is not None and not kept.is_kept:
        kept.save()
    return _found(accumulator, specs, config, reader)


def _found(
    accumulator: ScoreAccumulator, specs: Sequence[SamplingSpec], config: EvaluationConfig, reader: OcrEngine | None
) -> Evaluation:
    few = [s for s in specs if s.role == "student"]
    pairs = [(s.key, o.key) for s in few for o in specs if o.role == "undistilled" and o.steps == s.steps]
    errors, n, seed = accumulator.rmse, config.resamples, config.seed
    return Evaluation(
        pictures=len(accumulator.truth),
        seed=seed,
        rows=tuple(accumulator.row(spec, specs[0].key) for spec in specs),
        comparisons=tuple(compare(key, errors[key], other, errors[other], n, seed) for key, other in pairs),
        originals=accumulator.lines("originals", specs[0].key),
        reconstructions=accumulator.lines("reconstructions", specs[0].key),
        ocr_engine=reader.name if reader else None,
        lines_not_scored=accumulator.not_scored,
        lines_beyond_charset=sum(not reader.can_write(t) for texts in accumulator.truth for t in texts)
        if reader
        else 0,
        shown=tuple(accumulator.shown),
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
