"""Measures a few-step student against its teacher on held-out pictures: same start noise, every way of sampling.

Each row (a way of sampling, `painting.RowSpec`) is compared with the reference row, the teacher's 50 guided DDIM
steps, and read by an OCR engine, beside the originals and their VAE reconstructions, which bound what can be read.

Shape legend: B batch, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import compress
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from anytext2.batch import Batch, Sample, collate
from distill.distribution import sliced_wasserstein
from distill.objectives.base import Roles
from distill.ocr import Reader, reading_corners
from distill.painting import PUBLISHED, ConsistencyOptions, Painting, RowSpec, paint, set_scene
from distill.pictures import Shown, hint_picture, pixels, to_uint8
from distill.sampler import SamplerName
from distill.schedule import NoiseSchedule
from distill.scores import (
    HEIGHT,
    LANGUAGE,
    Comparison,
    LineScores,
    RowScore,
    TextScore,
    compare,
    lines_to_plain,
    mean_interval,
    psnr,
    rmse,
    row_to_plain,
    score_structure,
    score_text,
    to_plain,
)
from distill.structure import line_structure

HEIGHTS = ((24.0, "under 24"), (32.0, "24-32"), (48.0, "32-48"), (float("inf"), "48 and more"))
"""Pixels of a line's height: the shorter side of its box, which in a vertical column is its width."""


@dataclass
class EvaluationSection:
    """Options of an evaluation.

    batch: pictures computed together; guidance: of the teacher and of guided undistilled rows; seed: of all noise;
    undistilled_steps: steps at which the undistilled model is tried with both samplers, and with the student's where
    that is a third one; student_sampler: with gamma where it is the trajectory sampler; shown: pictures kept for the
    grid; resamples: of the bootstrap intervals; ocr_threads: of the OCR engine.
    """

    batch: int = 8
    guidance: float = 7.5
    negative_prompt: str = ""
    teacher_steps: list[int] = field(default_factory=lambda: [50, 20])
    undistilled_steps: list[int] = field(default_factory=lambda: [4])
    student_steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    student_sampler: SamplerName = "consistency"
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
        if self.guidance < 1.0:
            raise ValueError(f"evaluation.guidance={self.guidance} must be at least 1 (1: none; 7.5 is usual)")

    def _own_grid(self) -> list[int]:
        """Steps at which the undistilled model is tried with the student's sampler too: it may be the better one."""
        return [] if self.student_sampler in ("ddim", "consistency") else self.undistilled_steps

    def rows(self) -> tuple[RowSpec, ...]:
        """All rows; the first is the reference."""
        return (
            *(RowSpec("teacher", "ddim", n, self.guidance) for n in self.teacher_steps),
            *(RowSpec("undistilled", "ddim", n, self.guidance) for n in self.undistilled_steps),
            *(RowSpec("undistilled", "consistency", n) for n in self.undistilled_steps),
            *(RowSpec("undistilled", self.student_sampler, n, self.guidance, self.gamma) for n in self._own_grid()),
            *(RowSpec("student", self.student_sampler, n, gamma=self.gamma) for n in self.student_steps),
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
    shown: tuple[Shown, ...] = field(repr=False, default=())

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
    config: EvaluationSection,
    reader: Reader | None,
    options: ConsistencyOptions = PUBLISHED,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores every row of `config` on held-out samples.

    reader: None leaves the text scores out. progress: called with (pictures done, all pictures) after every batch.
    Lines of nothing but whitespace are not scored; lines with a character that the engine does not know are, and both
    are counted. Raises ValueError on an empty set of samples.
    """
    if not samples:
        raise ValueError("evaluation: no samples; the dataset must hold at least one readable picture")
    specs = config.rows()
    device = next(roles.model.parameters()).device
    tally = _Tally(config, reader)
    negative = config.negative_prompt if any(spec.guidance != 1.0 for spec in specs) else None
    with _evaluating(roles.model):
        for first in range(0, len(samples), config.batch):
            batch = collate(samples[first : first + config.batch]).to(device).floating()
            scene = set_scene(roles, batch, config.seed, negative)
            with roles.teacher():
                rebuilt = pixels(roles.model.decode(roles.model.encode(batch.image)))
            tally.start(batch, rebuilt)
            for painting in paint(roles, scene, specs, schedule, options):
                tally.add(batch, painting)
            if progress is not None:
                progress(min(first + config.batch, len(samples)), len(samples))
    return tally.finish(specs)


class _Tally:
    """Collects the batches of an evaluation, row by row."""

    def __init__(self, config: EvaluationSection, reader: Reader | None) -> None:
        self.config, self.reader = config, reader
        self.truth: list[list[str]] = []
        self.groups: list[list[tuple[str, ...]]] = []
        self.structure: dict[str, list[list[float]]] = {}
        self.latents: dict[str, list[torch.Tensor]] = {}
        self.read: dict[str, list[list[str]]] = {}
        self.rmse: dict[str, list[float]] = {}
        self.psnr: dict[str, list[float]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.nfe: dict[str, int] = {}
        self.shown: list[Shown] = []
        self.not_scored = 0
        self.reference: Painting | None = None

    def start(self, batch: Batch, rebuilt: torch.Tensor) -> None:
        """A new batch: its texts, its originals and the VAE's reconstructions of them ([B, 3, H, W] in [0, 1])."""
        self.reference = None
        originals = to_uint8(pixels(batch.image))
        self.truth += [[text for text in texts if text.strip()] for texts in batch.texts]
        self.groups += [
            [groups_of(*line) for line in zip(*lines, strict=True) if line[0].strip()]
            for lines in zip(batch.texts, batch.languages, batch.polygons, strict=True)
        ]
        self.not_scored += sum(not text.strip() for texts in batch.texts for text in texts)
        self._look("originals", batch, originals)
        self._look("reconstructions", batch, to_uint8(rebuilt))
        for b in range(min(batch.size, self.config.shown - len(self.shown))):
            hint = hint_picture(batch.position[b], batch.glyph[b])
            self.shown.append(Shown(batch.name[b], originals[b], hint, {}))

    def add(self, batch: Batch, painting: Painting) -> None:
        """One row of the batch; the first is the reference of the others."""
        key = painting.spec.key
        self.reference = self.reference or painting
        self.rmse.setdefault(key, []).extend(rmse(painting.latent, self.reference.latent).tolist())
        self.latents.setdefault(key, []).append(painting.latent.float().cpu())
        self.psnr.setdefault(key, []).extend(psnr(painting.image, self.reference.image).tolist())
        self.seconds.setdefault(key, []).append(painting.seconds / batch.size)
        self.nfe[key] = painting.nfe
        images = to_uint8(painting.image)
        self._look(key, batch, images)
        first = len(self.rmse[key]) - batch.size
        for shown, image in zip(self.shown[first:], images, strict=False):  # few of them are shown
            shown.rows[key] = image

    def finish(self, specs: Sequence[RowSpec]) -> Evaluation:
        rows = tuple(self._row(spec, specs[0]) for spec in specs)
        few = [s for s in specs if s.role == "student"]
        pairs = [(s, o) for s in few for o in specs if o.role == "undistilled" and o.steps == s.steps]
        n, seed, reader = self.config.resamples, self.config.seed, self.reader
        return Evaluation(
            pictures=len(self.truth),
            seed=seed,
            rows=rows,
            comparisons=tuple(compare(s.key, self.rmse[s.key], o.key, self.rmse[o.key], n, seed) for s, o in pairs),
            originals=self._lines("originals"),
            reconstructions=self._lines("reconstructions"),
            ocr_engine=reader.name if reader else None,
            lines_not_scored=self.not_scored,
            lines_beyond_charset=sum(not reader.can_write(t) for texts in self.truth for t in texts) if reader else 0,
            shown=tuple(self.shown),
        )

    def _row(self, spec: RowSpec, reference: RowSpec) -> RowScore:
        errors, ratios = self.rmse[spec.key], self.psnr[spec.key]
        mean_psnr = float(np.mean(ratios))
        return RowScore(
            key=spec.key,
            role=spec.role,
            sampler=spec.sampler,
            steps=spec.steps,
            guidance=spec.guidance,
            nfe=self.nfe[spec.key],
            latent_rmse=float(np.mean(errors)),
            latent_rmse_95=mean_interval(errors, None, self.config.resamples, self.config.seed),
            psnr_db=mean_psnr if np.isfinite(mean_psnr) else None,
            distance=sliced_wasserstein(
                torch.cat(self.latents[spec.key]), torch.cat(self.latents[reference.key]), self.config.seed
            ),
            lines=self._lines(spec.key),
            seconds_per_image=median(self.seconds[spec.key]),
        )

    def _look(self, key: str, batch: Batch, images: np.ndarray) -> None:
        """Reads the lines of a batch's pictures [B, H, W, 3], and compares their strokes with the glyphs."""
        pages = batch.glyph.to(torch.uint8).cpu().numpy()
        for image, page, texts, polygons in zip(images, pages, batch.texts, batch.polygons, strict=True):
            lines = [polygon for text, polygon in zip(texts, polygons, strict=True) if text.strip()]
            if self.reader is not None:
                self.read.setdefault(key, []).append(self.reader.read_lines(image, lines))
            strokes = [line_structure(image, polygon, page[0]) for polygon in lines]
            self.structure.setdefault(key, []).append([found.score for found in strokes if found is not None])

    def _groups(self, key: str) -> dict[str, TextScore]:
        """The lines' score by language and by height."""
        if self.reader is None:
            return {}
        found = {}
        for name in sorted({name for picture in self.groups for names in picture for name in names}):
            chosen = [[name in names for names in picture] for picture in self.groups]
            read, truth = (
                [list(compress(lines, which)) for lines, which in zip(texts, chosen, strict=True)]
                for texts in (self.read[key], self.truth)
            )
            found[name] = score_text(read, truth, self.config.resamples, self.config.seed)
        return found

    def _lines(self, key: str) -> LineScores:
        resamples, seed = self.config.resamples, self.config.seed
        text = score_text(self.read[key], self.truth, resamples, seed) if self.reader else None
        structure = score_structure(self.structure[key], resamples, seed)
        return LineScores(text, structure, self._groups(key))


def groups_of(text: str, language: str, polygon: np.ndarray) -> tuple[str, str]:
    """The groups that a line is scored in: its language, and how many pixels high it is."""
    corners = reading_corners(polygon)
    height = min(float(np.linalg.norm(corners[n] - corners[0])) for n in (1, 3))
    return LANGUAGE + language, HEIGHT + next(name for limit, name in HEIGHTS if height < limit)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
